"""Accuracy along one setting (length, block size), one line a method, dense as a dashed line in its band."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.report import variants
from harness.report.figures import style
from harness.report.leaderboard import is_baseline_row
from harness.study.schema import Status

Row = style.Row
WIDTH = 7.3
"""Inches of the panel."""


@dataclass(frozen=True)
class Trend:
    """The setting on the x axis: its column, the axis label and how its values are written."""

    column: str
    label: str
    written: Callable[[int], str]


def draw(rows: Sequence[Row], trend: Trend, title: str, device: str) -> Figure:
    """The figure for average rows of one model and device. A dense row without a value of the column (it has no block
    size) holds at every value. A method with one point is no line, and left out; the small print says how many are."""
    made = style.figure(WIDTH + 0.7, 4.6)
    looks = style.looks(str(r["method"]) for r in rows if not is_baseline_row(r))
    values = sorted({r[trend.column] for r in rows if r[trend.column] is not None})
    with matplotlib.rc_context(style.RC):
        axes = made.add_subplot()
        style.percent_axis(axes)
        ends = []
        drawn: Counter[str] = Counter()
        left = 0
        for name, members in sorted(variants.lines(rows, along=trend.column).items()):
            points = _points(members, trend, values)
            if len({value for value, _ in points}) < 2:
                left += 1
                continue
            method, dense = str(members[0]["method"]), is_baseline_row(members[0])
            colour, marker = (style.INK, "o") if dense else looks[method]
            dashes = (0, (5, 3)) if dense else style.DASHES[drawn[method] % len(style.DASHES)]
            drawn[method] += 1
            _line(axes, points, colour, marker, dashes, dense=dense)
            ends.append((name, points[-1][0], 100 * points[-1][1]["accuracy"], colour))
        axes.set_xscale("log", base=2)
        longest = max((len(text) for text, *_ in ends), default=0)
        names = min(0.6, (7.2 * longest + 24) / (72 * WIDTH))  # their share of the panel
        axes.set_xlim(values[0] / 2**0.2, values[-1] * max(2.0, values[-1] / values[0]) ** (names / (1 - names)))
        axes.set_xticks(values, [trend.written(v) for v in values])
        axes.minorticks_off()
        axes.set_xlabel(trend.label)
        heights = style.spread([y for _, _, y, _ in ends], 6.0, 0.0, 100.0)
        for (text, x, y, colour), height in zip(ends, heights, strict=True):
            style.name(axes, text, (x, y), height, colour, side="right")
        style.title(made, title)
        alone = f"Left out, with a single point: {left}. " if left else ""
        style.foot(made, alone + style.note(rows, device, bars="bars and band"))
    return made


def _points(rows: Sequence[Row], trend: Trend, values: Sequence[int]) -> list[tuple[int, Row]]:
    points = [(v, row) for row in rows for v in (values if row[trend.column] is None else [row[trend.column]])]
    return sorted(points, key=lambda point: point[0])


def _line(axes: Axes, points: Sequence[tuple[int, Row]], colour: str, marker: str, dashes: Any, *, dense: bool) -> None:
    xs, ys = [x for x, _ in points], [100 * r["accuracy"] for _, r in points]
    if dense:
        low, high = ([100 * r[c] for _, r in points] for c in ("accuracy_low", "accuracy_high"))
        axes.fill_between(xs, low, high, color=colour, alpha=0.08, linewidth=0)
    else:
        below, above = zip(*(style.error_bars(r) for _, r in points), strict=True)
        axes.errorbar(xs, ys, [below, above], fmt="none", ecolor=colour, elinewidth=1, capsize=2.5, alpha=0.5)
    axes.plot(xs, ys, color=colour, linewidth=1.8, linestyle=dashes, zorder=3)
    for (x, row), y in zip(points, ys, strict=True):
        face = "white" if row["status"] == Status.GATED else colour
        axes.plot(x, y, marker, color=colour, markerfacecolor=face, markersize=6, zorder=4)
