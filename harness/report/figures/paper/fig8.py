"""Fig 8: five kinds of pattern in gate maps, each in the head that shows it best."""

from __future__ import annotations

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm

from harness.measure.head_patterns import KINDS, HeadPattern, PatternRecord, as_map
from harness.report.figures import style
from harness.report.figures.paper import sheet
from harness.report.figures.paper.drawing import Drawing, Value, suffix_of
from harness.report.figures.paper.item import Item
from harness.report.figures.paper.recorded import Recorded, fullest

FAINTEST = 1e-3
"""The share of a row at the dark end of the scale."""
LETTERS = "abcde"
"""What the paper calls the panels."""


def draw(item: Item, recorded: Recorded) -> list[Drawing]:
    """Return a picture for each model whose heads were looked at, of its longest prompt; one at least."""
    sets = {(record.model, key): [record] for key, record in recorded.patterns().items()}
    shown = fullest(sets, lambda records: records[0].length, bool)
    if not shown:
        return [_draw(item, "", None, 0)]
    return [_draw(item, key[1].partition("/")[0], sets[key][0], number) for number, key in enumerate(shown)]


def _draw(item: Item, study: str, record: PatternRecord | None, number: int) -> Drawing:
    title = f"{item.number}: five kinds of gate maps" + (f", {record.model}, {record.length:,} tokens" if record else "")
    figure = sheet.new_sheet(sheet.PAGE, 1.95, title)
    patterns = {pattern.kind: pattern for pattern in record.patterns} if record else {}
    values: list[Value] = []
    with matplotlib.rc_context(sheet.RC | {"axes.grid": False}):
        for letter, axes, kind in zip(LETTERS, figure.subplots(1, len(KINDS)), KINDS, strict=True):
            axes.set_title(f"({letter}) {kind}", loc="left", fontweight="bold")
            if record is None or kind not in patterns:
                sheet.set_empty(axes, "not measured")
                continue
            _draw_map(axes, patterns[kind], record)
            values += _values(patterns[kind], record, study)
        sheet.finish(figure, _note(item, study, record))
    missing = [kind for kind in KINDS if kind not in patterns]
    model, device = (record.model, record.device) if record else ("", "")
    return Drawing(figure, values, (), model, device, suffix_of(number, model), list(patterns), missing)


def _draw_map(axes: Axes, pattern: HeadPattern, record: PatternRecord) -> None:
    values = as_map(pattern)
    future = np.triu(np.ones_like(values, dtype=bool), 1)
    colours = matplotlib.colormaps["inferno"].with_extremes(bad="#ececec")
    shown = np.ma.masked_array(np.clip(values, FAINTEST, 1), future)
    axes.imshow(shown, norm=LogNorm(FAINTEST, 1), cmap=colours, interpolation="nearest")
    ends = [-0.5, len(values) - 0.5]
    axes.set_xticks(ends, ["0", style.tokens(record.block * len(values))])
    axes.set_yticks([])
    axes.set_xlabel(f"layer {pattern.layer}, head {pattern.head}\n{pattern.score:.2f} of its mass", labelpad=1)
    axes.spines[["left", "bottom"]].set_visible(False)


def _values(pattern: HeadPattern, record: PatternRecord, study: str) -> list[Value]:
    """Return how much of a pattern the map of its head has, and how far that is above all heads."""
    series = f"layer {pattern.layer}, head {pattern.head}"
    numbers = (
        ("mass on the pattern", pattern.score, "share"),
        ("above the mean of all heads", pattern.deviations, "deviations"),
    )
    return [Value(pattern.kind, series, x, y, unit, study, record.device, command=record.command) for x, y, unit in numbers]


def _note(item: Item, study: str, record: PatternRecord | None) -> str:
    if record is None:
        return item.how_to_make
    return (
        f"What {record.method}'s gates expect of the largest attention in blocks of {record.block} tokens, rows summing to 1, "
        f"from {FAINTEST:g} (black) to 1 (yellow), logarithmic; grey: the future. A prompt of {record.task}, {record.dtype}, "
        f"{record.device}. Of {record.maps} heads the one that stands out most in each kind, none twice, with the share of its "
        f"attention that makes the pattern. Study: {study}. The paper's own maps are pictures, without numbers."
    )
