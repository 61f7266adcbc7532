"""The signs of points, the same in every picture, and the sentences that say what they mean."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import to_hex

from harness.report.figures import looks
from harness.report.figures.looks import INK, PAPER, LineLook
from harness.report.front import is_bound_row
from harness.report.notes import off_density
from harness.report.rows import Row
from harness.study.schema import Status

SIZE, SMALL = 6.5, 5.0
"""Points that markers are wide: of rows on lines, and of those off them."""
FADED = 0.8
"""Share of white in the part of a marker that has not the full colour."""
PALE = "#d2d2d2"
"""The colour of lines that are too many to be told apart."""


def draw_row(axes: Axes, place: tuple[float, float], look: LineLook, row: Row, *, ringed: bool = False) -> None:
    """Draw the point of a row: hollow where it is off the density asked for, crossed out where a check holds it back; ringed:
    with a ring around it."""
    draw_point(axes, place, look, hollow=off_density(row), crossed=row.status == Status.GATED, ringed=ringed)


def draw_point(
    axes: Axes, place: tuple[float, float], look: LineLook, *, hollow: bool = False, crossed: bool = False, ringed: bool = False
) -> None:
    """Draw a point with its signs, at a place in the units of the axes."""
    x, y = place
    if ringed:
        axes.plot(x, y, "o", color=INK, markerfacecolor="none", markersize=12, markeredgewidth=0.8, zorder=4)
    axes.plot(
        x,
        y,
        look.marker,
        color=look.colour,
        fillstyle="full" if hollow else look.fill,
        markerfacecolor="none" if hollow else look.colour,
        markerfacecoloralt=looks.mixed(to_hex(look.colour), PAPER, FADED),
        markersize=SMALL if hollow else SIZE,
        markeredgewidth=1.0,
        zorder=5,
    )
    if crossed:
        axes.plot(x, y, "x", color=INK, markersize=SIZE + 3, markeredgewidth=1.1, zorder=6)


def draw_bars(
    axes: Axes, points: Sequence[tuple[float, float]], ends: Sequence[tuple[float, float] | None], colour: str
) -> None:
    """Draw the bars of points from their lower to their upper ends; None: a point has no bar, which the small print says."""
    for (x, y), bar in zip(points, ends, strict=True):
        if bar is not None:
            lengths = [[max(0.0, y - bar[0])], [max(0.0, bar[1] - y)]]
            drawn: dict[str, Any] = {"color": colour, "ecolor": colour, "elinewidth": 1.0, "capsize": 2.0, "alpha": 0.5}
            axes.errorbar([x], [y], lengths, fmt="none", zorder=2, **drawn)


def signs_note(rows: Sequence[Row], *, ringed: bool = False, dashed: bool = False, front: bool = False) -> str:
    """Return a sentence for every sign that a picture of rows has. ringed, dashed, front: whether it has rings, a line of dense
    attention and a front."""
    signs = (
        (dashed, looks.DENSE_SIGN),
        (any(map(is_bound_row, rows)), looks.BOUND_SIGN),
        (any(map(off_density, rows)), looks.OFF_DENSITY_SIGN),
        (any(row.status == Status.GATED for row in rows), looks.GATED_SIGN),
        (ringed, looks.NATIVE_SIGN),
        (front, looks.FRONT_SIGN),
    )
    return "".join(f"{text}. " for is_drawn, text in signs if is_drawn)


def pale_note(names: Iterable[str], order: str) -> str:
    """Return which lines are pale, and by what the others were chosen; nothing where none is."""
    pale = sorted(names)
    return f"Pale, without bars, as too many to tell apart: {', '.join(pale)}; in colour the first by {order}. " if pale else ""
