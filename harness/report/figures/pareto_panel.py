"""One panel of a Pareto picture: the lines of one length against one cost, dense attention as a band, and names."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes

from harness.report.figures import picture_rows, style
from harness.report.figures.pareto_axes import DECODE, DENSITY, Axis, set_limits
from harness.report.figures.pareto_lines import LineLook, Looks, colour_name, line_rows, lines_of
from harness.report.notes import off_density
from harness.report.rows import Row
from harness.study.schema import Status

LETTER = 6.6
"""Points that a letter of a name is wide."""
NEAR = 0.08
"""Share of the panel's width by which a name may stand off its line to leave another line's point in sight."""
NEAR_DENSE = 0.75
"""A density from which on dense attention's own is in the picture too."""

Label = tuple[str, float, float, str]
"""A line's name, its cheapest point and its colour."""
Mark = tuple[str, float, float]
"""A point that names should not cover, after the name of the line that it is on."""


def draw_panel(
    axes: Axes,
    figure_rows: Sequence[Row],
    length: int,
    axis: Axis,
    looks: Looks,
    line_looks: Mapping[str, LineLook],
    width: float,
    *,
    named: bool,
) -> None:
    """Draw the panel of one length, about `width` inches wide, of the whole figure's rows. named: names stand at the lines, and
    points at native defaults have lines of their own; else those are ringed, and names are in a legend."""
    rows = [row for row in figure_rows if row.length == length]
    style.percent_axis(axes)
    axes.set_xlabel(axis.label)
    dense = next((row for row in rows if row.is_baseline), None)
    dense_cost = None if dense is None else axis.dense_cost(dense)
    points = [row for row in rows if not row.is_baseline and axis.cost(row) is not None]
    costs = [_place(row, axis) for row in points]
    if dense_cost is not None and (axis.log or max(costs, default=0.0) > NEAR_DENSE):
        costs.append(float(dense_cost))
    in_panel = set(map(id, points))
    all_lines = lines_of(line_rows(figure_rows, with_native=named), axis)  # so that a line has one name at all lengths
    in_lines = {name: [row for row in members if id(row) in in_panel] for name, members in all_lines.items()}
    lines = {name: members for name, members in in_lines.items() if members}
    longest = max(map(len, lines), default=0) if named else 0
    set_limits(axes, costs, axis, (LETTER * longest + 18) / (72 * width))
    if dense is not None:
        _draw_dense(axes, dense, dense_cost)
    for row in points:
        if row.sparsity is None and not named:
            _draw_ringed(axes, row, _place(row, axis), looks[colour_name(row)])
    labels = []
    for name, members in sorted(lines.items()):
        x, y = _draw_line(axes, members, axis, line_looks[name], bars=named)
        labels.append((name, x, y, line_looks[name].colour))
    if named:
        marks = [(name, _place(row, axis), row.scored.percent) for name, members in lines.items() for row in members]
        if dense is not None and dense_cost is not None:
            marks.append(("", float(dense_cost), dense.scored.percent))
        _write_names(axes, labels, marks, width)


def _place(row: Row, axis: Axis) -> float:
    """Return the cost of a row that is known to have one. Raises ValueError in any other."""
    cost = axis.cost(row)
    if cost is None:
        raise ValueError(f"row of {row.method} at {row.length}: it has no {axis.label}")
    return float(cost)


def _face(row: Row, colour: str) -> str:
    """Return the colour inside a marker: none where a gate holds the row back."""
    return "white" if row.status == Status.GATED else colour


def _draw_ringed(axes: Axes, row: Row, x: float, look: style.Look) -> None:
    colour, marker = look
    y = row.scored.percent
    axes.plot(x, y, "o", color=style.INK, markerfacecolor="none", markersize=11, markeredgewidth=0.8, zorder=4)
    axes.plot(x, y, marker, color=colour, markerfacecolor=_face(row, colour), zorder=4)


def _draw_line(axes: Axes, rows: Sequence[Row], axis: Axis, look: LineLook, *, bars: bool) -> tuple[float, float]:
    """Draw the points of a line in the order of their densities, in the time panel too: a curve follows the sparsity. Points
    off the density asked for are small and hollow, and no line joins them. Return its cheapest point. bars: with intervals; of
    many lines they would hide the points."""
    colour, marker, dash = look
    along = DECODE if axis is DECODE else DENSITY
    ordered = sorted(rows, key=lambda row: along.cost(row) or 0.0)
    xs, ys = [_place(row, axis) for row in ordered], [row.scored.percent for row in ordered]
    if bars:
        below, above = zip(*(picture_rows.error_bars(row) for row in ordered), strict=True)
        axes.errorbar(xs, ys, yerr=[below, above], fmt="none", ecolor=colour, elinewidth=1, capsize=2.5, alpha=0.45)
    joined = [(x, y) for x, y, row in zip(xs, ys, ordered, strict=True) if not off_density(row)]
    axes.plot([x for x, _ in joined], [y for _, y in joined], linestyle=dash, color=colour, linewidth=1.8, zorder=3)
    for x, y, row in zip(xs, ys, ordered, strict=True):
        if off_density(row):
            axes.plot(x, y, marker, color=colour, markerfacecolor="none", markersize=4, markeredgewidth=0.9, zorder=4)
        else:
            axes.plot(x, y, marker, color=colour, markerfacecolor=_face(row, colour), markersize=6, zorder=4)
    cheapest = min(range(len(xs)), key=xs.__getitem__)
    return xs[cheapest], ys[cheapest]


def _draw_dense(axes: Axes, dense: Row, cost: float | None) -> None:
    """Draw dense attention as a dashed line in the band of its interval, and a point at its cost."""
    score = dense.scored
    axes.axhspan(100 * score.accuracy_low, 100 * score.accuracy_high, color=style.INK, alpha=0.08, linewidth=0)
    axes.axhline(score.percent, color=style.INK, linewidth=1.2, linestyle=style.DENSE_DASH)
    if cost is not None:
        axes.plot(cost, score.percent, "o", color=style.INK, markersize=6, zorder=4)
    above = score.percent < 97  # at the left end, where only names of methods are
    axes.annotate(
        dense.method,
        (0, score.percent),
        xycoords=("axes fraction", "data"),
        xytext=(3, 3 if above else -3),
        textcoords="offset points",
        ha="left",
        va="bottom" if above else "top",
        fontsize=9,
    )


def _write_names(axes: Axes, labels: Sequence[Label], marks: Sequence[Mark], width: float) -> None:
    """Write names at the left of the cheapest points, moved apart where they would overlap; a little further left, or below the
    point, where the name would cover a point of another line."""
    if not labels:
        return
    heights = style.spread([y for _, _, y, _ in labels], 7.0, 0.0, 100.0)
    low, high = axes.get_xlim()
    log = axes.get_xscale() == "log"

    def across(x: float) -> float:
        """Return where a cost lies, as a share of the panel's width."""
        return math.log(x / low) / math.log(high / low) if log else (x - low) / (high - low)

    for (name, x, y, colour), height in zip(labels, heights, strict=True):
        start = across(x) - (LETTER * len(name) + 11) / (72 * width)
        hidden = [px for owner, px, py in marks if owner != name and start < across(px) < across(x) and abs(py - height) < 4]
        if hidden and across(x) - across(min(hidden)) > NEAR:
            style.write_name(axes, name, (x, y), y - 8, colour, side="below")
        else:
            style.write_name(axes, name, (min([x, *hidden]), y), height, colour, side="left")
