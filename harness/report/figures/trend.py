"""Accuracy along one setting (length, block size), one line a method, dense as a dashed line in its band."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.report.at_request import at_request
from harness.report.figures import labels, picture_rows, style
from harness.report.figures.few import best_few
from harness.report.figures.looks import LineLook, line_looks
from harness.report.figures.signs import PALE, draw_bars, draw_row, pale_note, signs_note
from harness.report.front import is_bound_row
from harness.report.lines import rows_by_line
from harness.report.notes import request_note
from harness.report.rows import Row

WIDTH = 8.0
"""Inches of the picture."""


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
    small print says how many are. Of too many lines the most accurate ones are in colour."""
    compared = at_request(rows)
    rows = compared.averages
    values = sorted({value for row in rows if (value := trend.value(row)) is not None})
    named = rows_by_line(rows, along=trend.setting, beside=compared.left_out)
    points = {name: _points(members, trend, values) for name, members in sorted(named.items())}
    alone = [name for name, members in points.items() if len({value for value, _ in members}) < 2]
    lines = {name: members for name, members in points.items() if name not in alone}
    coloured = best_few(lines, lambda name: (not lines[name][0][1].is_baseline, -fmean(_percents(lines[name]))))
    heights = [end for name in lines for _, row in lines[name] for end in picture_rows.interval(row)]
    height = max(4.4, labels.names_height(coloured) + 1.6)
    figure = style.new_figure(WIDTH, height)
    with matplotlib.rc_context(style.RC):
        axes = figure.add_subplot()
        style.percent_axis(axes, heights)
        style.length_axis(axes, values, trend.label)
        axes.set_xticks(values, [trend.value_text(value) for value in values])
        pale = [name for name in lines if name not in coloured]
        for name in pale:
            axes.plot([x for x, _ in lines[name]], _percents(lines[name]), ".-", color=PALE, linewidth=1.1, zorder=1.5)
        looks = looks_of_lines({name: [row for _, row in lines[name]] for name in coloured})
        ends = []
        for name in coloured:
            _draw_line(axes, lines[name], looks[name], name)
            look = looks[name]
            ends.append(labels.End(name, lines[name][-1][0], _percents(lines[name])[-1], look.colour, look.marker))
        labels.write_names(axes, ends, (WIDTH - 0.8, height - 1.6), (values[0], values[-1]))
        style.set_title(figure, title)
        drawn = [row for name in coloured for _, row in lines[name]]
        single = f"Left out, with a single point: {len(alone)}. " if alone else ""
        signs = signs_note(drawn, dashed=any(row.is_baseline for row in drawn))
        densities = request_note(rows, compared.left_out)
        text = pale_note(pale, "mean accuracy") + signs + single + densities
        bars = "bars and band" if any(row.is_baseline for row in drawn) else "bars"
        style.set_small_print(figure, text + picture_rows.note(rows, device, bars=bars))
    return figure


def looks_of_lines(lines: Mapping[str, Sequence[Row]]) -> dict[str, LineLook]:
    """Return how the lines of rows are drawn, those of dense attention among them."""
    first = {name: lines[name][0] for name in sorted(lines)}
    bounds, dense = ([name for name, row in first.items() if of(row)] for of in (is_bound_row, _is_dense))
    return line_looks({name: row.method for name, row in first.items()}, bounds=bounds, dense=dense)


def _is_dense(row: Row) -> bool:
    return row.is_baseline


def _percents(points: Sequence[Point]) -> list[float]:
    """Return the accuracies of points in per cent."""
    return [row.scored.percent for _, row in points]


def _points(rows: Sequence[Row], trend: Trend, values: Sequence[int]) -> list[Point]:
    points = []
    for row in rows:
        value = trend.value(row)
        points += [(place, row) for place in (values if value is None else [value])]
    return sorted(points, key=lambda point: point[0])


def _draw_line(axes: Axes, points: Sequence[Point], look: LineLook, name: str) -> None:
    """Draw a line, labelled with its name, with its points and their intervals; dense attention's is a band."""
    xs, ys = [x for x, _ in points], _percents(points)
    if points[0][1].is_baseline:
        lows, highs = zip(*(picture_rows.interval(row) for _, row in points), strict=True)
        axes.fill_between(xs, lows, highs, color=look.colour, alpha=0.08, linewidth=0)
    else:
        draw_bars(axes, [*zip(xs, ys, strict=True)], [picture_rows.interval(row) for _, row in points], look.colour)
    axes.plot(xs, ys, color=look.colour, linewidth=1.8, linestyle=look.dash, label=name, zorder=3)
    for (x, row), y in zip(points, ys, strict=True):
        draw_row(axes, (x, y), look, row)
