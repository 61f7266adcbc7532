"""Accuracy by length: what a method that looks good at 4k does at 128k, all methods at one sparsity."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from harness.figures import style
from harness.schema import AVERAGE, Status

Row = style.Row
PREFERRED = 0.9


def write(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write `lengths.png` for the sparsity with most points (the nearest to 0.9 of those), one picture per model and
    device. Nothing is written where no method was measured at two lengths or more."""
    shown = [r for r in rows if r["task"] == AVERAGE and r["accuracy"] is not None]
    sets: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in shown:
        sets[row["model"], row["device"]].append(row)
    paths = []
    for number, ((model, device), members) in enumerate(sorted(sets.items())):
        sparse = [r for r in members if r["block_size"] is not None and r["sparsity"] is not None]
        if len({r["length"] for r in sparse}) < 2:
            continue
        counts: dict[float, int] = defaultdict(int)
        for row in sparse:
            counts[row["sparsity"]] += 1
        sparsity = max(counts, key=lambda s: (counts[s], -abs(s - PREFERRED)))
        kept = [r for r in members if r["block_size"] is None or r["sparsity"] == sparsity]
        name = "lengths.png" if len(sets) == 1 else f"lengths_{number}.png"
        paths.append(style.save(draw(kept, sparsity, model, device), folder / name))
    return paths


def draw(rows: Sequence[Row], sparsity: float, model: str, device: str) -> Figure:
    """The figure for average rows of one model and device, dense and all methods at `sparsity`."""
    made = style.figure(8.0, 4.6)
    looks = style.looks(str(r["method"]) for r in rows if r["block_size"] is not None)
    lines: dict[tuple[str, object], list[Row]] = defaultdict(list)
    for row in rows:
        lines[str(row["method"]), f"{row['seed']} {row['block_size']}"].append(row)
    with matplotlib.rc_context(style.RC):
        axes = made.add_subplot()
        style.percent_axis(axes)
        ends = []
        for (name, _), members in sorted(lines.items(), key=lambda item: str(item[0])):
            dense = members[0]["block_size"] is None
            colour, marker = (style.INK, "o") if dense else looks[name]
            members = sorted(members, key=lambda r: r["length"])
            xs, ys = [r["length"] for r in members], [100 * r["accuracy"] for r in members]
            if dense:
                low, high = ([100 * r[c] for r in members] for c in ("accuracy_low", "accuracy_high"))
                axes.fill_between(xs, low, high, color=colour, alpha=0.08, linewidth=0)
            else:
                below, above = zip(*(style.error_bars(r) for r in members), strict=True)
                axes.errorbar(xs, ys, [below, above], fmt="none", ecolor=colour, elinewidth=1, capsize=2.5, alpha=0.5)
            axes.plot(xs, ys, color=colour, linewidth=1.8, linestyle=(0, (5, 3)) if dense else "-", zorder=3)
            for x, y, row in zip(xs, ys, members, strict=True):
                face = "white" if row["status"] == Status.GATED else colour
                axes.plot(x, y, marker, color=colour, markerfacecolor=face, markersize=6, zorder=4)
            ends.append((name, xs[-1], ys[-1], colour))
        lengths = sorted({r["length"] for r in rows})
        axes.set_xscale("log", base=2)
        axes.set_xlim(lengths[0] / 2**0.2, lengths[-1] * (lengths[-1] / lengths[0]) ** 0.28)
        axes.set_xticks(lengths, [style.tokens(n) for n in lengths])
        axes.minorticks_off()
        axes.set_xlabel("length (tokens)")
        heights = style.spread([y for _, _, y, _ in ends], 6.0, 0.0, 100.0)
        for (name, x, y, colour), height in zip(ends, heights, strict=True):
            style.name(axes, name, (x, y), height, colour, side="right")
        title = f"{model}: accuracy by length at sparsity {sparsity:g}"
        made.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
        note = f"Mean over tasks, bars and band: 95 % interval. Measured on {device}."
        made.supxlabel(note, x=0.01, ha="left", fontsize=8, color=style.GREY)
    return made
