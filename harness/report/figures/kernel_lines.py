"""The lines of a picture of kernels: which rows they show, how they look, and drawing them with their names beside them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from matplotlib.axes import Axes

from harness.measure.kernel_speed.cases import FULL, UNIFORM
from harness.report.figures import labels
from harness.report.figures.few import best_few
from harness.report.figures.looks import DASHES, DENSE_DASH, INK, SOLID, Dash, LineLook, Look, series_looks
from harness.report.figures.signs import PALE, draw_bars
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
SPARSE_KERNELS = ("triton", "hopper", "flash4", "flash4_merged", "flex", "sdpa", "reference")
"""Sparse kernels, which have their looks in this order, the same in every picture."""
SLOWER_GREY = "#8f8f8f"
"""Dense kernels that are not the fastest."""
STROKES: tuple[Dash, ...] = (DENSE_DASH, (0, (9, 3)), (0, (2.5, 2.5)), (0, (14, 3)))
"""Dashes of dense kernels."""
SHARED_DASH = DASHES[1]
"""The dash of kernels whose query heads share an index."""

Value = Callable[[KernelRow], float | None]
"""A row's place on an axis."""
Group = tuple[str, bool, int]
"""Kernel, whether heads share an index, and block size: what sparse rows of one line have in common, if blocks come from one
kind of index."""


@dataclass(frozen=True)
class Scales:
    """What is on the axes: the places of a row, None for one that has none there, and the ends of its bar on the y axis."""

    x: Value
    y: Value
    ends: Callable[[KernelRow], tuple[float, float] | None] = lambda row: None

    def point(self, row: KernelRow) -> tuple[float, float]:
        """Return the place of a row. Raises ValueError where it has none."""
        x, y = self.x(row), self.y(row)
        if x is None or y is None:
            raise ValueError(f"row of {row.kernel or row.method} at {row.length}: it has no place in this picture")
        return float(x), float(y)


@dataclass(frozen=True)
class Line:
    """One line of a panel: its name, look and points, from left to right, with the ends of their bars."""

    name: str
    look: LineLook
    points: list[tuple[float, float]]
    bars: list[tuple[float, float] | None]

    @property
    def label(self) -> str:
        """Return its name and the value of its last point."""
        last = self.points[-1][1]
        return f"{self.name}  {last:.0f}" if last >= 100 else f"{self.name}  {last:#.3g}"


def kernel_looks(names: Iterable[str]) -> dict[str, Look]:
    """Return colour and marker of every sparse kernel, the same in all pictures."""
    kernels = set(names)
    looks = series_looks([*SPARSE_KERNELS, *sorted(kernels - set(SPARSE_KERNELS))])
    return {name: looks[name] for name in kernels}


def lines_of(rows: Sequence[KernelRow], scales: Scales, *, name_blocks: bool = False) -> Iterator[Line]:
    """Yield the lines of one panel: dense kernels dashed and grey, the one that is fastest at the end black; each sparse kernel
    in its colour, with dots in its dash where heads share an index. name_blocks: names say the block size, where several are
    in the panel."""
    yield from _dense_lines([row for row in rows if row.op == FULL], scales)
    groups = by_group(row for row in rows if row.op != FULL)
    looks = kernel_looks(kernel for kernel, _, _ in groups)
    several = len({block for _, _, block in groups}) > 1
    for (kernel, shared, block), members in sorted(groups.items()):
        name = f"{kernel}{f' {block}' if name_blocks and several else ''}{', shared' if shared else ''}"
        look = LineLook(*looks[kernel], SHARED_DASH if shared else SOLID)
        yield _line(name, look, shown_rows(members), scales)


def _line(name: str, look: LineLook, rows: Sequence[KernelRow], scales: Scales) -> Line:
    ordered = sorted(rows, key=scales.point)
    return Line(name, look, [scales.point(row) for row in ordered], [scales.ends(row) for row in ordered])


def _dense_lines(rows: Sequence[KernelRow], scales: Scales) -> Iterator[Line]:
    by_kernel: dict[str, list[KernelRow]] = defaultdict(list)
    for row in rows:
        by_kernel[row.kernel].append(row)
    lines = [
        _line(NAMES.get(kernel, kernel), LineLook(SLOWER_GREY, "o", STROKES[number % len(STROKES)]), members, scales)
        for number, (kernel, members) in enumerate(sorted(by_kernel.items()), 1)
    ]
    fastest = min(lines, key=lambda line: (-line.points[-1][0], line.points[-1][1]), default=None)
    for line in lines:
        yield replace(line, look=LineLook(INK, "o", DENSE_DASH)) if line is fastest else line


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


def draw_lines(axes: Axes, lines: Sequence[Line], inches: tuple[float, float], *, best: Callable[[float], float]) -> list[str]:
    """Draw lines in a panel so many inches wide and high, whose scales are set, their names in a column right of all points. Of
    too many, those are pale whose last values are not among the smallest by `best`, but for the fastest dense kernel; return
    their names."""
    lines = [line for line in lines if line.points]
    named = best_few(lines, lambda line: (line.look.colour != INK, -line.points[-1][0], best(line.points[-1][1])))
    pale = [line for line in lines if line not in named]
    for line in pale:
        axes.plot(*zip(*line.points, strict=True), color=PALE, linewidth=1.1, zorder=1.5)
    for line in named:
        look = line.look
        draw_bars(axes, line.points, line.bars, look.colour)
        xs, ys = zip(*line.points, strict=True)
        axes.plot(xs, ys, color=look.colour, linestyle=look.dash, linewidth=1.6, marker=look.marker, markersize=4.5, zorder=3)
    places = [x for line in lines for x, _ in line.points]
    axes.set_ylim(axes.get_ylim())
    ends = [labels.End(line.label, *line.points[-1], line.look.colour, line.look.marker) for line in named]
    labels.write_names(axes, ends, inches, (min(places), max(places)))
    return [line.name for line in pale]
