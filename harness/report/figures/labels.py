"""Names of lines beside a panel: a column right of all points, in which no two overlap, each behind its line's marker and led
to the line's end."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from typing import NamedTuple

from matplotlib.axes import Axes

from harness.report.figures.looks import text_colour

LETTER, LINE = 0.075, 0.165
"""Inches that a letter of a name is wide, and that a line of it is high."""
FOLDED = 34
"""Letters of a line of a name; longer ones are folded."""
MARGIN = 0.4
"""Inches from the last point to the names, and right of them."""


_Map = Callable[[float], float]


class End(NamedTuple):
    """The name of a line, the place where it ends in the units of the axes, its colour and its marker."""

    text: str
    x: float
    y: float
    colour: str
    marker: str


def folded(text: str) -> str:
    """Return a name in lines that have room beside a panel."""
    return "\n".join(textwrap.wrap(text, FOLDED)) or text


def names_height(names: Sequence[str]) -> float:
    """Return the inches that names need one above the other."""
    return LINE * sum(1 + folded(name).count("\n") for name in names)


def names_width(names: Sequence[str]) -> float:
    """Return the inches that names need at the right of a panel, with what leads to them."""
    return MARGIN + LETTER * max((len(line) for name in names for line in folded(name).split("\n")), default=0)


def write_names(axes: Axes, ends: Sequence[End], inches: tuple[float, float], xs: tuple[float, float]) -> None:
    """Write the names of lines in a column right of the points, and make room for them on the x axis, whose scale is set.

    inches: width and height of the panel with its names, about. xs: the first and the last place of a point on the x axis.
    """
    if not ends:
        return
    width, height = inches
    to_linear, from_linear = _linear(axes.get_xscale())
    low, high = to_linear(xs[0]), to_linear(xs[1])
    span = max(high - low, 1e-9 + 0.05 * abs(high))
    share = min(0.65, names_width([end.text for end in ends]) / width)
    total = 1.05 * span / (1 - share)
    axes.set_xlim(from_linear(low - 0.05 * span), from_linear(low - 0.05 * span + total))
    column = from_linear(high + 0.25 / width * total)
    y_low, y_high = axes.get_ylim()
    to_height, from_height = _linear(axes.get_yscale())
    bottom, top = to_height(y_low), to_height(y_high)
    places = [(to_height(end.y) - bottom) / (top - bottom) for end in ends]
    sizes = [LINE * (1 + folded(end.text).count("\n")) / height for end in ends]
    for end, place in zip(ends, spread(places, sizes, 0.0, 1.0), strict=True):
        at = from_height(bottom + place * (top - bottom))
        colour = text_colour(end.colour)
        if end.x == xs[1]:  # from further left it would look like a line
            axes.plot([end.x, column], [end.y, at], color=end.colour, linewidth=0.7, alpha=0.5, zorder=2)
        axes.plot(column, at, end.marker, color=end.colour, markersize=5, zorder=6, clip_on=False)
        axes.annotate(
            folded(end.text),
            (column, at),
            xytext=(7, 0),
            textcoords="offset points",
            color=colour,
            fontsize=9,
            va="center",
            zorder=6,
            annotation_clip=False,
        )


def _linear(scale: str) -> tuple[_Map, _Map]:
    """Return what maps an axis to one on which distances are those of the picture, and what maps it back."""
    return (math.log, math.exp) if scale == "log" else (float, float)


def spread(positions: Sequence[float], sizes: float | Sequence[float], low: float, high: float) -> list[float]:
    """Return positions as near to the given ones as can be at which things of such sizes don't overlap, centres within [low,
    high] for one size of all, whole things within it for one each; from `low` on where they have no room."""
    centred = not isinstance(sizes, Sequence)
    heights = [float(sizes)] * len(positions) if not isinstance(sizes, Sequence) else [*map(float, sizes)]
    groups: list[tuple[list[int], float]] = []  # members, centre of them all
    for i in sorted(range(len(positions)), key=lambda i: positions[i]):
        group = ([i], positions[i])
        while True:
            members, centre = group
            total = sum(heights[m] for m in members)
            inset = (heights[members[0]] + heights[members[-1]]) / 4 if centred else 0.0
            half = total / 2 - inset
            centre = max(min(centre, high - half), low + half)
            if not groups or groups[-1][1] + sum(heights[m] for m in groups[-1][0]) / 2 <= centre - total / 2 + 1e-12:
                groups.append((members, centre))
                break
            before, _ = groups.pop()
            joined = before + members
            group = (joined, sum(positions[m] for m in joined) / len(joined))
    placed = [0.0] * len(positions)
    for members, centre in groups:
        at = centre - sum(heights[m] for m in members) / 2
        for m in members:
            placed[m] = at + heights[m] / 2
            at += heights[m]
    return placed
