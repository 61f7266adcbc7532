"""Fig 2: perplexity by sparsity of gates that pool queries and keys in other ways."""

from __future__ import annotations

from harness.report.figures.paper.drawing import Drawing
from harness.report.figures.paper.item import Item
from harness.report.figures.paper.recorded import Recorded
from harness.report.figures.paper.sparsity_panels import draw_models


def draw(item: Item, recorded: Recorded) -> list[Drawing]:
    """Return a picture for each model whose gates of several poolings were measured; one at least."""
    return draw_models(item, [row for row in recorded.perplexity_rows() if row.study == item.experiment])
