"""Samples against margin: how many a claim needs, a line for each discordance."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

from harness.report.figures import style
from harness.report.power import SamplesNeeded


def write(rows: Sequence[SamplesNeeded], folder: Path) -> Path:
    """Write `power.png` from the rows of power.csv, at the lowest power that was asked for."""
    power = min(row.power for row in rows)
    lines: dict[tuple[str, float], list[SamplesNeeded]] = {}
    for row in rows:
        if row.power == power:
            lines.setdefault((row.source, row.discordance), []).append(row)
    figure = style.new_figure(6.6, 4.2)
    with matplotlib.rc_context(style.RC):
        axes = figure.subplots()
        for number, ((source, discordance), members) in enumerate(lines.items()):
            colour = style.PALETTE[number % len(style.PALETTE)]
            for claim, dash in (("non-inferior", style.DASHES[0]), ("differs", style.DASHES[1])):
                points = sorted((row.margin, row.samples) for row in members if row.claim == claim and row.samples)
                if points:
                    label = f"{claim}: {discordance:.3f} ({source})"
                    x, y = zip(*points, strict=True)
                    axes.plot([100 * m for m in x], y, color=colour, linestyle=dash, marker="o", markersize=4, label=label)
        axes.set_xscale("log")
        axes.set_yscale("log")
        margins = sorted({100 * row.margin for row in rows})
        axes.set_xticks(margins, [f"{margin:g}" for margin in margins])
        axes.minorticks_off()
        axes.set_xlabel("margin, or difference to be seen (points)")
        axes.set_ylabel("samples in all")
        axes.set_title(f"samples for power {power:g} at alpha {rows[0].alpha:g}, by discordance", loc="left")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8, frameon=False)
    return style.save(figure, folder / "power.png")
