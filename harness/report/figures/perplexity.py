"""Perplexity by length, one line a method at one sparsity; of one length, perplexity by density. Dense is the dashed line."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from harness.report import variants
from harness.report.figures import style
from harness.report.leaderboard import is_baseline_row
from harness.study.schema import PERPLEXITY, Status

Row = style.Row
PREFERRED = 0.9
WIDE = 3.0
"""Where the largest perplexity is so many times the smallest, the axis is logarithmic."""


@dataclass(frozen=True)
class Line:
    """A method's rows along the x axis, and how they look."""

    name: str
    rows: list[Row]
    colour: str
    marker: str
    dashes: Any
    dense: bool


def write(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write `perplexity.png`, one picture for each model, device and text, numbered from the second on."""
    sets: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    for row in rows:
        if row["task"] == PERPLEXITY and row["perplexity"] is not None:
            sets[row["model"], row["device"], row["haystack"]].append(row)
    paths = []
    for number, (_, members) in enumerate(sorted(sets.items())):
        path = folder / (f"perplexity_{number}.png" if number else "perplexity.png")
        paths.append(style.save(draw(members), path))
    return paths


def draw(rows: Sequence[Row]) -> Figure:
    """The figure for rows of one model, device and text."""
    along = "length" if len({r["length"] for r in rows}) > 1 else "density"
    kept, sparsity = _one_sparsity(rows) if along == "length" else (list(rows), None)
    made = style.figure(8.0, 4.6)
    with matplotlib.rc_context(style.RC):
        axes = made.add_subplot()
        lines = _lines(kept, along)
        for line in lines:
            _draw(axes, line, along)
        _axes(axes, kept, along)
        _names(axes, lines, along)
        at = f" at sparsity {sparsity:g}" if sparsity is not None else ""
        of = "by length" if along == "length" else f"at {style.tokens(rows[0]['length'])} tokens"
        style.title(made, f"{rows[0]['model']}: perplexity {of}{at}")
        style.foot(made, _note(kept))
    return made


def _one_sparsity(rows: Sequence[Row]) -> tuple[list[Row], float | None]:
    """Dense and the sparsity with most points, of those the nearest to 0.9."""
    counts = Counter(r["sparsity"] for r in rows if not is_baseline_row(r) and r["sparsity"] is not None)
    if not counts:
        return list(rows), None
    sparsity = max(counts, key=lambda s: (counts[s], -abs(s - PREFERRED)))
    return [r for r in rows if is_baseline_row(r) or r["sparsity"] == sparsity], sparsity


def _lines(rows: Sequence[Row], along: str) -> list[Line]:
    looks: Mapping[str, tuple[str, str]] = style.looks(str(r["method"]) for r in rows if not is_baseline_row(r))
    drawn: Counter[str] = Counter()
    found = []
    grouped = variants.lines(rows, along="length") if along == "length" else variants.lines(rows)
    for name, members in sorted(grouped.items()):
        method, dense = str(members[0]["method"]), is_baseline_row(members[0])
        colour, marker = (style.INK, "o") if dense else looks[method]
        dashes = (0, (5, 3)) if dense else style.DASHES[drawn[method] % len(style.DASHES)]
        drawn[method] += 1
        found.append(Line(name, sorted(members, key=lambda r: r[along]), colour, marker, dashes, dense))
    return found


def _draw(axes: Axes, line: Line, along: str) -> None:
    xs, ys = [r[along] for r in line.rows], [r["perplexity"] for r in line.rows]
    low, high = ([r["perplexity" if r[c] is None else c] for r in line.rows] for c in ("perplexity_low", "perplexity_high"))
    if line.dense and along == "density":
        axes.axhspan(low[0], high[0], color=line.colour, alpha=0.08, linewidth=0)
        axes.axhline(ys[0], color=line.colour, linewidth=1.2, linestyle=line.dashes)
    elif line.dense:
        axes.fill_between(xs, low, high, color=line.colour, alpha=0.08, linewidth=0)
    else:
        bars = [[y - b for y, b in zip(ys, low, strict=True)], [b - y for y, b in zip(ys, high, strict=True)]]
        axes.errorbar(xs, ys, bars, fmt="none", ecolor=line.colour, elinewidth=1, capsize=2.5, alpha=0.5)
    axes.plot(xs, ys, color=line.colour, linewidth=1.8, linestyle=line.dashes, zorder=3)
    for x, y, row in zip(xs, ys, line.rows, strict=True):
        face = "white" if row["status"] == Status.GATED else line.colour
        axes.plot(x, y, line.marker, color=line.colour, markerfacecolor=face, markersize=6, zorder=4)


def _axes(axes: Axes, rows: Sequence[Row], along: str) -> None:
    values = [r["perplexity"] for r in rows]
    axes.set_ylabel("perplexity")
    if max(values) > WIDE * min(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    if along == "density":
        axes.set_xlabel("density (share of causal blocks kept)")
        axes.set_xlim(0, 1.3)
        axes.set_xticks([t / 5 for t in range(6)])
        return
    lengths = sorted({r["length"] for r in rows})
    axes.set_xscale("log", base=2)
    axes.set_xlim(lengths[0] / 2**0.2, lengths[-1] * max(2.0, lengths[-1] / lengths[0]) ** 0.28)
    axes.set_xticks(lengths, [style.tokens(n) for n in lengths])
    axes.minorticks_off()
    axes.set_xlabel("length (tokens)")


def _names(axes: Axes, lines: Sequence[Line], along: str) -> None:
    """Each line's name at its right end, moved apart on the axis as it is drawn, linear or logarithmic."""
    axes.figure.canvas.draw()  # the limits are settled by drawing
    to_axes = (axes.transData + axes.transAxes.inverted()).transform
    back = (axes.transAxes + axes.transData.inverted()).transform
    ends: dict[float, list[Line]] = defaultdict(list)
    for line in lines:
        ends[line.rows[-1][along] if along == "length" else 0.0].append(line)
    for members in ends.values():  # lines that end at another length are not in each other's way
        points = [(float(line.rows[-1][along]), float(line.rows[-1]["perplexity"])) for line in members]
        wanted = [float(to_axes(point)[1]) for point in points]
        for line, point, height in zip(members, points, style.spread(wanted, 0.065, 0.0, 1.0), strict=True):
            style.name(axes, line.name, point, float(back((0.5, height))[1]), line.colour, side="right")


def _note(rows: Sequence[Row]) -> str:
    counts = sorted({r["samples"] for r in rows})
    each = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]}–{counts[-1]}"
    gated = "; hollow: held back by a sanity gate" if any(r["status"] == Status.GATED for r in rows) else ""
    text, device = rows[0]["haystack"], rows[0]["device"]
    return f"{each} documents of {text} a point, bars and band: 95 % interval over documents{gated}.\nMeasured on {device}."
