"""Fig 5: perplexity by sparsity, panels by length."""

from __future__ import annotations

from harness.report.figures.paper.drawing import Drawing
from harness.report.figures.paper.item import Item
from harness.report.figures.paper.recorded import Recorded
from harness.report.figures.paper.sparsity_panels import draw_models


def draw(item: Item, recorded: Recorded) -> list[Drawing]:
    """Return a picture for each model whose perplexity was measured at two lengths at least."""
    return draw_models(item, recorded.perplexity_rows())
