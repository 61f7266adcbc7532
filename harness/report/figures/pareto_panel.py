"""One panel of a Pareto picture: the lines of one length against one cost, their front, and dense attention as a band."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes

from harness.report.figures import picture_rows
from harness.report.figures.looks import DENSE_DASH, GREY, INK, LineLook
from harness.report.figures.pareto_axes import DECODE, DENSITY, Axis, set_limits
from harness.report.figures.pareto_lines import ParetoLines, is_native
from harness.report.figures.signs import PALE, draw_bars, draw_row
from harness.report.front import front_rows
from harness.report.notes import off_density
from harness.report.rows import Row

NEAR_DENSE = 0.75
"""A density from which on dense attention's own is in the picture too."""


def draw_panel(axes: Axes, rows: Sequence[Row], axis: Axis, lines: ParetoLines) -> None:
    """Draw the panel of the rows of one length, whose y axis is set. Points at a method's own defaults are ringed and on no
    line; those off the density asked for are hollow and on none."""
    axes.set_xlabel(axis.label)
    dense = next((row for row in rows if row.is_baseline), None)
    dense_cost = None if dense is None else axis.dense_cost(dense)
    points = [row for row in rows if not row.is_baseline and axis.cost(row) is not None]
    costs = [_place(row, axis) for row in points]
    if dense_cost is not None and (axis.log or max(costs, default=0.0) > NEAR_DENSE):
        costs.append(float(dense_cost))
    set_limits(axes, costs, axis)
    if dense is not None:
        _draw_dense(axes, dense, dense_cost)
    if not points:
        return
    _draw_front(axes, rows, axis)
    in_panel = set(map(id, points))
    for name, members in sorted(lines.rows.items(), key=lambda item: item[0] not in lines.pale):
        if own := [row for row in members if id(row) in in_panel]:
            (_draw_pale if name in lines.pale else _draw_line)(axes, own, axis, lines.looks[name])


def _place(row: Row, axis: Axis) -> float:
    """Return the cost of a row that is known to have one. Raises ValueError in any other."""
    cost = axis.cost(row)
    if cost is None:
        raise ValueError(f"row of {row.method} at {row.length}: it has no {axis.label}")
    return float(cost)


def _joined(rows: Sequence[Row], axis: Axis) -> tuple[list[float], list[float]]:
    """Return the places of the points that a line passes through, in the order of their densities, in the time panel too: a
    curve follows the sparsity."""
    along = DECODE if axis is DECODE else DENSITY
    ordered = sorted(rows, key=lambda row: along.cost(row) or 0.0)
    joined = [row for row in ordered if not off_density(row) and not is_native(row)]
    return [_place(row, axis) for row in joined], [row.scored.percent for row in joined]


def _draw_line(axes: Axes, rows: Sequence[Row], axis: Axis, look: LineLook) -> None:
    """Draw a line with its points and their intervals."""
    xs, ys = [_place(row, axis) for row in rows], [row.scored.percent for row in rows]
    draw_bars(axes, [*zip(xs, ys, strict=True)], [*map(picture_rows.interval, rows)], look.colour)
    axes.plot(*_joined(rows, axis), linestyle=look.dash, color=look.colour, linewidth=1.7, zorder=3)
    for x, y, row in zip(xs, ys, rows, strict=True):
        draw_row(axes, (x, y), look, row, ringed=is_native(row))


def _draw_pale(axes: Axes, rows: Sequence[Row], axis: Axis, look: LineLook) -> None:
    """Draw a line of too many without bars and signs, as the background of the others."""
    axes.plot(*_joined(rows, axis), color=PALE, linewidth=1.1, zorder=1.5)
    xs, ys = [_place(row, axis) for row in rows], [row.scored.percent for row in rows]
    axes.plot(xs, ys, look.marker, color=PALE, markersize=3.5, zorder=1.5)


def _draw_front(axes: Axes, rows: Sequence[Row], axis: Axis) -> None:
    """Draw the front as steps, up to the right end of the panel; none where no row is usable."""
    if front := front_rows(rows, axis.cost_of):
        steps = [(float(axis.cost_of(row) or 0.0), row.scored.percent) for row in front]
        steps.append((max(axes.get_xlim()[1], steps[-1][0]), steps[-1][1]))
        xs, ys = zip(*steps, strict=True)
        axes.step(xs, ys, where="post", color=GREY, linewidth=4.5, alpha=0.3, zorder=1.8, solid_capstyle="butt")


def _draw_dense(axes: Axes, dense: Row, cost: float | None) -> None:
    """Draw dense attention as a dashed line in the band of its interval, and a point at its cost."""
    score = dense.scored
    axes.axhspan(100 * score.accuracy_low, 100 * score.accuracy_high, color=INK, alpha=0.08, linewidth=0)
    axes.axhline(score.percent, color=INK, linewidth=1.2, linestyle=DENSE_DASH)
    if cost is not None:
        axes.plot(cost, score.percent, "o", color=INK, markersize=6, zorder=4)
