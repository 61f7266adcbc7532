"""Accuracy along one setting (length, block size), one line a method, dense as a dashed line in its band."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.report.at_request import at_request
from harness.report.figures import picture_rows, style
from harness.report.lines import rows_by_line
from harness.report.notes import request_note
from harness.report.rows import Row
from harness.study.schema import Status

WIDTH = 7.3
"""Inches of the panel."""


@dataclass(frozen=True)
class Trend:
    """The setting on the x axis: the field of a row, the axis label and how its values are written."""

    setting: Literal["length", "block_size"]
    label: str
    value_text: Callable[[int], str]

    def value(self, row: Row) -> int | None:
        """Return where a row stands on the x axis; None for dense attention's block size."""
        return row.length if self.setting == "length" else row.block_size


Point = tuple[int, Row]
"""A value on the x axis, and the row there."""


def has_line(rows: Sequence[Row], trend: Trend) -> bool:
    """Return whether a line of a method has two points at the density asked for."""
    sparse = [row for row in at_request(rows).averages if not row.is_baseline]
    lines = rows_by_line(sparse, along=trend.setting, beside=rows)
    return any(len({trend.value(row) for row in members}) > 1 for members in lines.values())


def draw(rows: Sequence[Row], trend: Trend, title: str, device: str) -> Figure:
    """Return the figure for average rows of one model and device. A dense row without a value of the setting (it has no block
    size) holds at every value. Rows off the density asked for, and a method with one point, which is no line, are left out; the
    small print says how many are."""
    compared = at_request(rows)
    rows = compared.averages
    figure = style.new_figure(WIDTH + 0.7, 4.6)
    values = sorted({value for row in rows if (value := trend.value(row)) is not None})
    with matplotlib.rc_context(style.RC):
        axes = figure.add_subplot()
        style.percent_axis(axes)
        ends = []
        drawn: Counter[str] = Counter()
        named = rows_by_line(rows, along=trend.setting, beside=compared.left_out)
        lines = {name: (members, _points(members, trend, values)) for name, members in sorted(named.items())}
        alone = [name for name, (_, points) in lines.items() if len({value for value, _ in points}) < 2]
        lines = {name: line for name, line in lines.items() if name not in alone}
        looks = style.looks_of(members[0].method for members, _ in lines.values() if not members[0].is_baseline)
        for name, (members, points) in lines.items():
            method, dense = members[0].method, members[0].is_baseline
            look = (style.INK, "o") if dense else looks[method]
            dash = style.DENSE_DASH if dense else style.DASHES[drawn[method] % len(style.DASHES)]
            drawn[method] += 1
            _draw_line(axes, points, look, dash, dense=dense)
            ends.append((name, points[-1][0], points[-1][1].scored.percent, look[0]))
        axes.set_xscale("log", base=2)
        longest = max((len(text) for text, *_ in ends), default=0)
        names = min(0.6, (7.2 * longest + 24) / (72 * WIDTH))  # their share of the panel
        axes.set_xlim(values[0] / 2**0.2, values[-1] * max(2.0, values[-1] / values[0]) ** (names / (1 - names)))
        axes.set_xticks(values, [trend.value_text(value) for value in values])
        axes.minorticks_off()
        axes.set_xlabel(trend.label)
        heights = style.spread([y for _, _, y, _ in ends], 6.0, 0.0, 100.0)
        for (text, x, y, colour), height in zip(ends, heights, strict=True):
            style.write_name(axes, text, (x, y), height, colour, side="right")
        style.set_title(figure, title)
        single = f"Left out, with a single point: {len(alone)}. " if alone else ""
        densities = request_note(rows, compared.left_out)
        style.set_small_print(figure, single + densities + picture_rows.note(rows, device, bars="bars and band"))
    return figure


def _points(rows: Sequence[Row], trend: Trend, values: Sequence[int]) -> list[Point]:
    points = []
    for row in rows:
        value = trend.value(row)
        points += [(place, row) for place in (values if value is None else [value])]
    return sorted(points, key=lambda point: point[0])


def _draw_line(axes: Axes, points: Sequence[Point], look: style.Look, dash: style.Dash, *, dense: bool) -> None:
    colour, marker = look
    xs, ys = [x for x, _ in points], [row.scored.percent for _, row in points]
    if dense:
        low, high = [100 * row.scored.accuracy_low for _, row in points], [100 * row.scored.accuracy_high for _, row in points]
        axes.fill_between(xs, low, high, color=colour, alpha=0.08, linewidth=0)
    else:
        below, above = zip(*(picture_rows.error_bars(row) for _, row in points), strict=True)
        axes.errorbar(xs, ys, [below, above], fmt="none", ecolor=colour, elinewidth=1, capsize=2.5, alpha=0.5)
    axes.plot(xs, ys, color=colour, linewidth=1.8, linestyle=dash, zorder=3)
    for (x, row), y in zip(points, ys, strict=True):
        face = "white" if row.status == Status.GATED else colour
        axes.plot(x, y, marker, color=colour, markerfacecolor=face, markersize=6, zorder=4)
