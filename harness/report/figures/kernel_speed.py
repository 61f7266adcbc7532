"""Pictures of a study of kernels: time by length, per cent of the ideal by sparsity, decoding."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from harness.measure.kernel_speed.cases import FULL, SPARSE, UNIFORM
from harness.report.figures import style
from harness.study.schema import Status

Row = style.Row
PREFERRED = 0.9
NAMES = {
    "sdpa_flash": "FlashAttention-2",
    "sdpa_cudnn": "cuDNN",
    "fa3": "FlashAttention-3",
    "fa4": "FlashAttention-4",
    "sdpa": "SDPA",
    "sdpa_efficient": "memory-efficient",
}
"""Dense kernels as their authors call them."""


@dataclass(frozen=True)
class Line:
    """One line of a panel: its name, colour, dashes, marker and points."""

    name: str
    colour: str
    dashes: Any
    marker: str
    points: list[tuple[float, float]]

    @property
    def label(self) -> str:
        """Its name and the value of its last point."""
        last = self.points[-1][1]
        return f"{self.name}  {last:.0f}" if last >= 100 else f"{self.name}  {last:.3g}"


def write(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write the pictures the rows allow, one set per shape, dtype and device: `time_by_length.png`, `share_of_ideal.png`, and
    `decode.png` of a study of decoding. A picture needs two lengths, or two sparsities."""
    sets: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for row in rows:
        if row["status"] == Status.OK and row["total_ms"] is not None:
            sets[row["model"], row["dtype"], row["device"]].append(row)
    paths = []
    for number, (_, members) in enumerate(sorted(sets.items())):
        suffix = f"_{number}" if number else ""
        prefill, decode = ([r for r in members if r["phase"] == phase] for phase in ("prefill", "decode"))
        for name, made in (
            ("time_by_length", _by_length(prefill, "block_size", "blocks of")),
            ("share_of_ideal", _by_sparsity(prefill)),
            ("decode", _by_length(decode, "batch", "batch")),
        ):
            if made is not None:
                paths.append(style.save(made, folder / f"{name}{suffix}.png"))
    return paths


# -- time by length ------------------------------------------------------------------------------------------------------


def _by_length(rows: Sequence[Row], column: str, panel: str) -> Figure | None:
    """Time against length, a panel each for the lowest and highest value of `column`; dense kernels in every panel (of its
    batch)."""
    dense = [r for r in rows if r["op"] == FULL]
    sparse = [r for r in rows if r["op"] == SPARSE]
    sparsity = _usual(sparse)
    sparse = [r for r in sparse if r["sparsity"] == sparsity]
    panels = _ends({r[column] for r in sparse})
    if not panels or len({r["length"] for r in sparse}) < 2:
        return None
    unit, scale = ("µs", 1e3) if max(r["total_ms"] for r in dense + sparse) < 5 else ("ms", 1.0)
    looks = style.looks(r["kernel"] for r in sparse)
    made = style.figure(max(7.0, 5.2 * len(panels)), 5.0)
    with matplotlib.rc_context(style.RC):
        for i, value in enumerate(panels):
            axes = made.add_subplot(1, len(panels), i + 1)
            mine = [r for r in sparse if r[column] == value]
            longest = max(r["length"] for group in _groups(mine) for r in _shown(group))
            mine += [r for r in dense if column != "batch" or r["batch"] == value]
            mine = [r for r in mine if r["length"] <= longest]  # a dense line that goes on alone compares with nothing
            lines = list(_lines(mine, looks, "length", "total_ms", scale, blocks=column != "block_size"))
            axes.set_title(f"{panel} {value}", loc="left", fontweight="bold")
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            lengths = sorted({r["length"] for r in mine})
            axes.set_xticks(lengths, [style.tokens(n) for n in lengths])
            axes.set_xlabel("keys (tokens)" if column == "batch" else "length (tokens)")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.xaxis.set_minor_formatter(NullFormatter())
            if i == 0:
                axes.set_ylabel(f"time per attention layer call ({unit})")
            _draw(axes, lines, made.get_figwidth() / len(panels) - 0.8, log=True)
        what = "one step of decoding" if column == "batch" else "prefill, selection included"
        _frame(made, rows, sparse, f"{what}, sparsity {sparsity:g}")
    return made


def _ends(values: Iterable[int]) -> list[int]:
    """The lowest and the highest: two panels are what a page shows in letters that can be read."""
    ordered = sorted(values)
    return ordered if len(ordered) < 3 else [ordered[0], ordered[-1]]


def _usual(rows: Sequence[Row]) -> float:
    """The sparsity with most rows, of those the nearest to 0.9."""
    counts = Counter(r["sparsity"] for r in rows)
    return max(counts, key=lambda s: (counts[s], -abs(s - PREFERRED)), default=PREFERRED)


# -- per cent of the ideal by sparsity -----------------------------------------------------------------------------------


def _by_sparsity(rows: Sequence[Row]) -> Figure | None:
    """Per cent of the ideal against sparsity, a panel each for the smallest and largest block size, at the length where most
    was timed; of equal ones the longest."""
    sparse = [r for r in rows if r["op"] == SPARSE and r["pct_ideal"] is not None]
    timed: dict[int, set[tuple[int, float]]] = defaultdict(set)
    for row in sparse:
        timed[row["length"]].add((row["block_size"], row["sparsity"]))
    length = max(timed, key=lambda n: (len(timed[n]), n), default=0)
    sparse = [r for r in sparse if r["length"] == length]
    if len({r["sparsity"] for r in sparse}) < 2:
        return None
    panels = _ends({r["block_size"] for r in sparse})
    looks = style.looks(r["kernel"] for r in sparse)
    made = style.figure(max(7.0, 5.2 * len(panels)), 4.8)
    with matplotlib.rc_context(style.RC):
        for i, block in enumerate(panels):
            axes = made.add_subplot(1, len(panels), i + 1)
            lines = list(_lines([r for r in sparse if r["block_size"] == block], looks, "sparsity", "pct_ideal"))
            axes.set_title(f"blocks of {block}", loc="left", fontweight="bold")
            axes.set_ylim(0, max(104.0, *(y + 4 for line in lines for _, y in line.points)))
            axes.axhline(100, color=style.INK, linewidth=1.0, linestyle=(0, (5, 3)))
            sparsities = sorted({r["sparsity"] for r in sparse})
            axes.set_xticks(sparsities, [f"{s:g}".lstrip("0") or "0" for s in sparsities])
            axes.set_xlabel("sparsity (share of causal blocks left out)")
            if i == 0:
                axes.set_ylabel("% of the ideal (fastest dense × density ÷ total)")
            _draw(axes, lines, made.get_figwidth() / len(panels) - 0.8, log=False)
        _frame(made, rows, sparse, f"share of the ideal speed-up at {style.tokens(length)} tokens, selection included")
    return made


# -- lines ---------------------------------------------------------------------------------------------------------------


def _lines(
    rows: Sequence[Row], looks: Mapping[str, tuple[str, str]], x: str, y: str, scale: float = 1.0, *, blocks: bool = False
) -> Iterator[Line]:
    """The lines of one panel: dense kernels in grey, the one that is fastest at the end in black; each sparse kernel in its
    colour, dotted where heads share an index. blocks: several block sizes are in one panel, told apart by name."""
    dense: dict[str, list[Row]] = defaultdict(list)
    sparse: dict[tuple[str, bool, int], list[Row]] = defaultdict(list)
    for row in rows:
        if row["op"] == FULL:
            dense[row["kernel"]].append(row)
        else:
            sparse[row["kernel"], row["shared"], row["block_size"]].append(row)
    ends = {kernel: max(members, key=lambda r: r[x]) for kernel, members in dense.items()}
    fastest = min(ends, key=lambda kernel: (-ends[kernel][x], ends[kernel][y]), default=None)
    for kernel, members in sorted(dense.items()):
        colour = style.INK if kernel == fastest else "#8f8f8f"
        dashes = "-" if kernel == fastest else style.DASHES[1 + sorted(dense).index(kernel) % 3]
        yield Line(NAMES.get(kernel, kernel), colour, dashes, "o", _points(members, x, y, scale))
    several = len({block for _, _, block in sparse}) > 1
    for (kernel, shared, block), members in sorted(sparse.items()):
        chosen = _shown(members)
        name = f"{kernel}{f' {block}' if blocks and several else ''}{', shared' if shared else ''}"
        colour, marker = looks[kernel]
        dashes = style.DASHES[2 if shared else 0]
        yield Line(name, colour, dashes, marker, _points(chosen, x, y, scale))


def _shown(rows: Sequence[Row]) -> list[Row]:
    """The rows of the index kind that is shown: one that a method selected on real activations, else random."""
    kinds = sorted({r["method"] for r in rows}, key=lambda m: (m == UNIFORM, m))
    return [r for r in rows if r["method"] == kinds[0]]


def _points(rows: Sequence[Row], x: str, y: str, scale: float) -> list[tuple[float, float]]:
    return sorted((float(r[x]), scale * float(r[y])) for r in rows)


def _draw(axes: Axes, lines: Sequence[Line], inches: float, *, log: bool) -> None:
    """Draw the lines, their names in a column right of all points, each led to the end of its line."""
    lines = [line for line in lines if line.points]
    for line in lines:
        xs, ys = zip(*line.points, strict=True)
        axes.plot(xs, ys, color=line.colour, linestyle=line.dashes, linewidth=1.7, marker=line.marker, markersize=4.5, zorder=3)
    low, high = min(x for line in lines for x, _ in line.points), max(x for line in lines for x, _ in line.points)
    share = (0.061 * max(len(line.label) for line in lines) + 0.35) / inches  # of the panel, for the names
    room = share / (1 - share)
    if log:
        span = math.log(max(high / low, 2.0))
        axes.set_xlim(low / math.exp(0.04 * span), high * math.exp(room * span))
        column = high * math.exp(0.06 * span)
    else:
        span = max(high - low, 0.05)
        axes.set_xlim(low - 0.04 * span, high + room * span)
        column = high + 0.06 * span
    bottom, top = axes.get_ylim()
    place = (math.log10, lambda v: 10**v) if log else (float, float)
    low_y, high_y = place[0](bottom), place[0](top)
    gap = (high_y - low_y) * 0.05
    wanted = [place[0](line.points[-1][1]) for line in lines]
    heights = style.spread(wanted, gap, low_y + gap / 2, high_y - gap / 2)
    axes.set_ylim(bottom, top)
    for line, height in zip(lines, heights, strict=True):
        x, y = line.points[-1]
        axes.plot([x, column], [y, place[1](height)], color=line.colour, linewidth=0.7, alpha=0.6, zorder=2)
        axes.text(
            column,
            place[1](height),
            f" {line.label}",
            color=line.colour,
            fontsize=8.5,
            fontweight="bold",
            va="center",
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )


def _frame(made: Figure, rows: Sequence[Row], sparse: Sequence[Row], title: str) -> None:
    """Title above and what the reader must know below."""
    first = rows[0]
    kinds = sorted({r["index"] for lines in _groups(sparse) for r in _shown(lines)})
    selection = next((r["selection"] for r in sparse if r["selection"]), "")
    selected = f" Selection timed: {selection}." if selection else " No selection."
    style.title(made, f"{first['model']}: {title}")
    shared = "; shared: one for the query heads of a KV head" if any(r["shared"] for r in sparse) else ""
    merged = sorted({r["kernel"] for r in sparse if r["k_block"] != r["block_size"]})
    wider = f" {', '.join(merged)} attends to more: blocks merged to larger ones." if merged else ""
    note = f"Index: {', '.join(kinds)}{shared}.{selected}\nMedians, {first['dtype']}. Measured on {first['device']}.{wider}"
    style.foot(made, note)


def _groups(rows: Sequence[Row]) -> list[list[Row]]:
    found: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        found[row["kernel"], row["shared"], row["block_size"]].append(row)
    return list(found.values())
