"""The lines of a picture of kernels: which rows they show, how they look, and drawing them with their names beside them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke

from harness.measure.kernel_speed.cases import FULL, UNIFORM
from harness.report.figures import style
from harness.report.kernel_rows import KernelRow

NAMES = {
    "sdpa_flash": "FlashAttention-2",
    "sdpa_cudnn": "cuDNN",
    "fa3": "FlashAttention-3",
    "fa4": "FlashAttention-4",
    "sdpa": "SDPA",
    "sdpa_efficient": "memory-efficient",
}
"""Dense kernels as their authors call them."""
SLOWER_GREY = "#8f8f8f"
"""Dense kernels that are not the fastest."""

Value = Callable[[KernelRow], float | None]
"""A row's place on an axis."""
Group = tuple[str, bool, int]
"""Kernel, whether heads share an index, and block size: what sparse rows of one line have in common, if blocks come from one
kind of index."""


@dataclass(frozen=True)
class Scales:
    """What is on the axes: the places of a row, None for one that has none there."""

    x: Value
    y: Value

    def point(self, row: KernelRow) -> tuple[float, float]:
        """Return the place of a row. Raises ValueError where it has none."""
        x, y = self.x(row), self.y(row)
        if x is None or y is None:
            raise ValueError(f"row of {row.kernel or row.method} at {row.length}: it has no place in this picture")
        return float(x), float(y)


@dataclass(frozen=True)
class Line:
    """One line of a panel: its name, colour, dash, marker and points."""

    name: str
    colour: str
    dash: style.Dash
    marker: str
    points: list[tuple[float, float]]

    @property
    def label(self) -> str:
        """Return its name and the value of its last point."""
        last = self.points[-1][1]
        return f"{self.name}  {last:.0f}" if last >= 100 else f"{self.name}  {last:#.3g}"


def lines_of(
    rows: Sequence[KernelRow], looks: Mapping[str, style.Look], scales: Scales, *, name_blocks: bool = False
) -> Iterator[Line]:
    """Yield the lines of one panel: dense kernels in grey, the one that is fastest at the end in black; each sparse kernel in
    its colour, dotted where heads share an index. name_blocks: names say the block size, where several are in the panel."""
    yield from _dense_lines([row for row in rows if row.op == FULL], scales)
    groups = by_group(row for row in rows if row.op != FULL)
    several = len({block for _, _, block in groups}) > 1
    for (kernel, shared, block), members in sorted(groups.items()):
        name = f"{kernel}{f' {block}' if name_blocks and several else ''}{', shared' if shared else ''}"
        colour, marker = looks[kernel]
        yield Line(name, colour, style.DASHES[2 if shared else 0], marker, _points(shown_rows(members), scales))


def _dense_lines(rows: Sequence[KernelRow], scales: Scales) -> Iterator[Line]:
    by_kernel: dict[str, list[KernelRow]] = defaultdict(list)
    for row in rows:
        by_kernel[row.kernel].append(row)
    points = {kernel: _points(members, scales) for kernel, members in sorted(by_kernel.items())}
    fastest = min(points, key=lambda kernel: (-points[kernel][-1][0], points[kernel][-1][1]), default=None)
    for number, kernel in enumerate(points):
        colour = style.INK if kernel == fastest else SLOWER_GREY
        dash = style.DASHES[0] if kernel == fastest else style.DASHES[1 + number % 3]
        yield Line(NAMES.get(kernel, kernel), colour, dash, "o", points[kernel])


def by_group(rows: Iterator[KernelRow] | Sequence[KernelRow]) -> dict[Group, list[KernelRow]]:
    """Return sparse rows by kernel, whether heads share an index, and block size."""
    groups: dict[Group, list[KernelRow]] = defaultdict(list)
    for row in rows:
        groups[row.kernel, bool(row.shared), row.block_size or 0].append(row)
    return groups


def shown_rows(rows: Sequence[KernelRow]) -> list[KernelRow]:
    """Return the rows of the index kind that is shown: one that a method selected on real activations, else random."""
    kinds = sorted({row.method for row in rows}, key=lambda method: (method == UNIFORM, method))
    return [row for row in rows if row.method == kinds[0]]


def _points(rows: Sequence[KernelRow], scales: Scales) -> list[tuple[float, float]]:
    return sorted(scales.point(row) for row in rows)


def draw_lines(axes: Axes, lines: Sequence[Line], inches: float, *, log: bool) -> None:
    """Draw lines in a panel `inches` wide, their names in a column right of all points, each led to the end of its line. log:
    both axes are logarithmic."""
    lines = [line for line in lines if line.points]
    for line in lines:
        xs, ys = zip(*line.points, strict=True)
        axes.plot(xs, ys, color=line.colour, linestyle=line.dash, linewidth=1.7, marker=line.marker, markersize=4.5, zorder=3)
    column = _make_room(axes, lines, inches, log=log)
    bottom, top = axes.get_ylim()
    to_linear, from_linear = (math.log10, lambda v: 10**v) if log else (float, float)
    low, high = to_linear(bottom), to_linear(top)
    gap = (high - low) * 0.05
    heights = style.spread([to_linear(line.points[-1][1]) for line in lines], gap, low + gap / 2, high - gap / 2)
    axes.set_ylim(bottom, top)
    for line, height in zip(lines, heights, strict=True):
        x, y = line.points[-1]
        axes.plot([x, column], [y, from_linear(height)], color=line.colour, linewidth=0.7, alpha=0.6, zorder=2)
        axes.text(
            column,
            from_linear(height),
            f" {line.label}",
            color=line.colour,
            fontsize=8.5,
            fontweight="bold",
            va="center",
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )


def _make_room(axes: Axes, lines: Sequence[Line], inches: float, *, log: bool) -> float:
    """Widen the x axis for the names of the lines; return where their column begins."""
    low, high = min(x for line in lines for x, _ in line.points), max(x for line in lines for x, _ in line.points)
    share = (0.061 * max(len(line.label) for line in lines) + 0.35) / inches  # of the panel, for the names
    room = share / (1 - share)
    if log:
        span = math.log(max(high / low, 2.0))
        axes.set_xlim(low / math.exp(0.04 * span), high * math.exp(room * span))
        return high * math.exp(0.06 * span)
    span = max(high - low, 0.05)
    axes.set_xlim(low - 0.04 * span, high + room * span)
    return high + 0.06 * span
