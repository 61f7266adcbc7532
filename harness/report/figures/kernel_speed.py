"""Pictures of a study of kernels: time by length, per cent of the ideal by sparsity, decoding."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from harness.measure.kernel_speed.cases import DECODE, FULL, PREFILL, SPARSE, TRAINING
from harness.report.figures import style
from harness.report.figures.few import MOST
from harness.report.figures.kernel_lines import Scales, by_group, draw_lines, lines_of, shown_rows
from harness.report.figures.looks import BOUND_DASH, INK
from harness.report.figures.picture_rows import usual_sparsity
from harness.report.figures.signs import pale_note
from harness.report.kernel_rows import KernelRow
from harness.report.stale import KERNELS, remove_stale
from harness.study.matching import Match
from harness.study.schema import Status

PANEL, HEIGHT = 5.2, 3.9
"""Inches of a panel's width and height."""
COLOURS = "Dashed: dense kernels. Muted colours are kernels, no methods."
MICROSECONDS_BELOW = 5.0
"""Where all times are below so many milliseconds, the axis is in microseconds."""


def write(rows: Sequence[KernelRow], folder: Path) -> list[Path]:
    """Write the pictures the rows allow, one set per shape, dtype and device: `time_by_length.png`, `share_of_ideal.png`,
    `decode.png` of a study of decoding, and `both_passes.png` of training. A picture needs two lengths, or two sparsities.
    Rows with full last rows are in none, and the small print says so: beside each other in a table they say what those cost.
    Pictures that an earlier call left under these names go."""
    sets: dict[tuple[str, str, str], list[KernelRow]] = defaultdict(list)
    for row in rows:
        if row.status == Status.OK and row.times.total_ms is not None:
            sets[row.shape, row.dtype, row.device].append(row)
    paths = []
    for number, (_, members) in enumerate(sorted(sets.items(), key=lambda item: item[0])):
        suffix = f"_{number}" if number else ""
        phases = (PREFILL, DECODE, TRAINING)
        prefill, decode, training = ([row for row in members if row.phase == phase] for phase in phases)
        for name, figure in (
            ("time_by_length", _by_length(prefill, BLOCKS)),
            ("share_of_ideal", _by_sparsity(prefill)),
            ("decode", _by_length(decode, BATCHES)),
            ("both_passes", _by_length(training, BOTH_PASSES)),
        ):
            if figure is not None:
                paths.append(style.save(figure, folder / f"{name}{suffix}.png", mark=KERNELS))
    remove_stale(folder, KERNELS, paths)
    return paths


# -- time by length ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Panels:
    """What the panels of a picture of times differ in: the value in a row and its name; what a call is, what the lengths are.
    of_batches: a dense kernel is of one panel alone, and lines name their block sizes."""

    value: Callable[[KernelRow], int]
    name: str
    call: str
    lengths: str
    of_batches: bool


BLOCKS = _Panels(
    lambda row: row.block_size or 0, "blocks of", "prefill, selection included", "length (tokens)", of_batches=False
)
BOTH_PASSES = replace(BLOCKS, call="forward and backward, selection included")
BATCHES = _Panels(lambda row: row.batch, "batch", "one step of decoding", "keys (tokens)", of_batches=True)


def _by_length(rows: Sequence[KernelRow], panels: _Panels) -> Figure | None:
    """Return time against length, a panel each for the lowest and highest value; dense kernels in every panel (of its batch).
    None where there is nothing to draw."""
    dense = [row for row in rows if row.op == FULL]
    sparse, off = _on_one_index([row for row in rows if row.op == SPARSE and row.full_rows is None])
    sparsity = usual_sparsity(row.sparsity for row in sparse)
    sparse = [row for row in sparse if row.sparsity == sparsity]
    left_out = [row for row in off if row.sparsity == sparsity]
    values = _ends({panels.value(row) for row in sparse})
    if not values or len({row.length for row in sparse}) < 2:
        return None
    unit, scale = ("µs", 1e3) if max(_total_ms(row) for row in dense + sparse) < MICROSECONDS_BELOW else ("ms", 1.0)
    scales = Scales(lambda row: row.length, lambda row: scale * _total_ms(row), lambda row: _spread(row, scale))
    rows_of: dict[int, list[KernelRow]] = {}
    for value in values:
        members = [row for row in sparse if panels.value(row) == value]
        longest = max(row.length for group in by_group(members).values() for row in shown_rows(group))
        members += [row for row in dense if not panels.of_batches or panels.value(row) == value]
        members = [row for row in members if row.length <= longest]  # a dense line that goes on alone compares with nothing
        rows_of[value] = members
    by_share = _shares(rows_of.values(), scales, name_blocks=panels.of_batches)
    pale: set[str] = set()
    figure = style.new_figure(max(7.0, PANEL * len(values)), 1.2 + HEIGHT * len(by_share))
    with matplotlib.rc_context(style.RC):
        grid = figure.subplots(len(by_share), len(values), squeeze=False)
        for line_of_panels, shared in zip(grid, by_share, strict=True):
            for axes, (value, members) in zip(line_of_panels, rows_of.items(), strict=True):
                lines = list(lines_of(_sharing(members, shared), scales, name_blocks=panels.of_batches))
                own = "" if shared is None else ", one index for a group of heads" if shared else ", an index for each head"
                axes.set_title(f"{panels.name} {value}{own}", loc="left", fontweight="bold")
                style.length_axis(axes, sorted({row.length for row in members}), panels.lengths)
                axes.set_yscale("log")
                inches = (figure.get_figwidth() / len(values) - 0.7, HEIGHT - 0.9)
                pale |= set(draw_lines(axes, lines, inches, best=lambda ms: ms))
                style.log_axis(axes.yaxis)
            line_of_panels[0].set_ylabel(f"time per attention layer call ({unit}), {style.LOG}")
        title = f"{panels.call}, sparsity {sparsity:g}, measured density {_densities(sparse)}"
        _write_texts(figure, rows, sparse, left_out, title, pale)
    return figure


def _spread(row: KernelRow, scale: float) -> tuple[float, float] | None:
    """Return the 10th and the 90th percentile of the time of a row, None where it has none."""
    times = row.times
    return None if times.total_low is None or times.total_high is None else (scale * times.total_low, scale * times.total_high)


def _share_spread(row: KernelRow) -> tuple[float, float] | None:
    """Return the per cents of the ideal at those percentiles."""
    times = row.times
    if times.pct_ideal is None or not times.total_ms or not times.total_low or not times.total_high:
        return None
    return times.pct_ideal * times.total_ms / times.total_high, times.pct_ideal * times.total_ms / times.total_low


def _shares(panels: Iterable[Sequence[KernelRow]], scales: Scales, *, name_blocks: bool) -> list[bool | None]:
    """Return what the rows of panels show: everything (None); where that is too many lines in one panel, kernels whose query
    heads have an index each in one row and those that share one in another."""
    most = max(len(list(lines_of(members, scales, name_blocks=name_blocks))) for members in panels)
    return [None] if most <= MOST else [False, True]


def _sharing(rows: Sequence[KernelRow], shared: bool | None) -> list[KernelRow]:
    """Return dense rows, and the sparse ones whose query heads share an index or don't; None: all."""
    return [row for row in rows if shared is None or row.op == FULL or bool(row.shared) == shared]


def _total_ms(row: KernelRow) -> float:
    """Return the time of a row that is known to have one. Raises ValueError in any other."""
    if row.times.total_ms is None:
        raise ValueError(f"row of {row.kernel} at {row.length}: it has no time")
    return row.times.total_ms


def _ends(values: Iterable[int]) -> list[int]:
    """Return the lowest and the highest value: two panels are what a page shows in letters that can be read."""
    ordered = sorted(values)
    return ordered if len(ordered) < 3 else [ordered[0], ordered[-1]]


# -- per cent of the ideal by sparsity -----------------------------------------------------------------------------------


def _by_sparsity(rows: Sequence[KernelRow]) -> Figure | None:
    """Return per cent of the ideal against sparsity, a panel each for the smallest and largest block size, at the length where
    most was timed; of equal ones the longest. None where there is nothing to draw."""
    timed_rows = [row for row in rows if row.op == SPARSE and row.full_rows is None and row.times.pct_ideal is not None]
    sparse, off = _on_one_index(timed_rows)
    timed: dict[int, set[tuple[int | None, float | None]]] = defaultdict(set)
    for row in sparse:
        timed[row.length].add((row.block_size, row.sparsity))
    length = max(timed, key=lambda length: (len(timed[length]), length), default=0)
    sparse = [row for row in sparse if row.length == length]
    sparsities = sorted({row.sparsity for row in sparse if row.sparsity is not None})
    if len(sparsities) < 2:
        return None
    blocks = _ends({row.block_size or 0 for row in sparse})
    scales = Scales(lambda row: row.sparsity, lambda row: row.times.pct_ideal, _share_spread)
    pale: set[str] = set()
    figure = style.new_figure(max(7.0, PANEL * len(blocks)), 4.8)
    with matplotlib.rc_context(style.RC):
        for i, block in enumerate(blocks):
            axes = figure.add_subplot(1, len(blocks), i + 1)
            lines = list(lines_of([row for row in sparse if row.block_size == block], scales))
            axes.set_title(f"blocks of {block}", loc="left", fontweight="bold")
            axes.set_ylim(0, max(104.0, *(y + 4 for line in lines for _, y in line.points)))
            axes.axhline(100, color=INK, linewidth=1.4, linestyle=BOUND_DASH)
            axes.set_xticks(sparsities, [f"{sparsity:g}".lstrip("0") or "0" for sparsity in sparsities])
            axes.set_xlabel("sparsity (share of causal blocks left out)")
            if i == 0:
                axes.set_ylabel("% of the ideal (fastest dense × density ÷ total)")
            inches = (figure.get_figwidth() / len(blocks) - 0.7, 3.4)
            pale |= set(draw_lines(axes, lines, inches, best=lambda share: -share))
        title = f"share of the ideal speed-up at {style.tokens(length)} tokens, selection included"
        _write_texts(figure, rows, sparse, [row for row in off if row.length == length], title, pale)
    return figure


def _densities(rows: Sequence[KernelRow]) -> str:
    """Return the least and the greatest measured density of rows."""
    texts = sorted(f"{row.density:.3f}" for row in rows if row.density is not None)
    return "–".join(dict.fromkeys([texts[0], texts[-1]])) if texts else "unknown"


def _on_one_index(rows: Sequence[KernelRow]) -> tuple[list[KernelRow], list[KernelRow]]:
    """Return the rows that attended to the index they were given, and those of kernels that merged its blocks and are off the
    density asked for: beside the others they would stand at another density."""
    off = [row for row in rows if row.match == Match.OFF_DENSITY and (row.q_block, row.k_block) != (row.block_size,) * 2]
    return [row for row in rows if row not in off], off


def _write_texts(
    figure: Figure,
    rows: Sequence[KernelRow],
    sparse: Sequence[KernelRow],
    left_out: Sequence[KernelRow],
    title: str,
    pale: Iterable[str],
) -> None:
    """Write the title above and what the reader must know below, with how many rows are left out and why. pale: names of lines
    that are too many to be told apart."""
    first = rows[0]
    kinds = sorted({row.index_name for members in by_group(sparse).values() for row in shown_rows(members)})
    selection = next((row.selection for row in sparse if row.selection), "")
    selected = f" Selection timed: {selection}." if selection else " No selection."
    style.set_title(figure, f"{first.shape}: {title}")
    shared = "; shared: one for the query heads of a KV head" if any(row.shared for row in sparse) else ""
    names = ", ".join(sorted({row.kernel for row in left_out}))
    off = f" Left out, as merged blocks are off the density asked for: {len(left_out)} of {names}." if left_out else ""
    full = ", without full last rows" if any(row.full_rows is not None for row in rows) else ""
    bars = "bars from the 10th to the 90th percentile, within their points where none is seen"
    bars += ", or not recorded" if any(row.times.total_low is None for row in sparse) else ""
    text = f"Index: {', '.join(kinds)}{shared}.{selected}\nMedians, {bars}, {first.dtype}{full}. {COLOURS}"
    text += f" Measured on {first.device}.{off}"
    style.set_small_print(figure, pale_note(pale, "value at the end") + text)
