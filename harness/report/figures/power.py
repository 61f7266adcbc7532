"""Samples against margin: how many a claim needs, a line for each discordance."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

from harness.report.figures import style


def write(rows: Sequence[dict[str, Any]], folder: Path) -> Path:
    """Write `power.png` from the rows of power.csv, at the lowest power that was asked for."""
    power = min(r["power"] for r in rows)
    lines: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for row in rows:
        if row["power"] == power:
            lines.setdefault((row["source"], row["discordance"]), []).append(row)
    made = style.figure(6.6, 4.2)
    with matplotlib.rc_context(style.RC):
        axes = made.subplots()
        for number, ((source, discordance), members) in enumerate(lines.items()):
            colour = style.PALETTE[number % len(style.PALETTE)]
            for claim, dashes in (("non-inferior", style.DASHES[0]), ("differs", style.DASHES[1])):
                points = sorted((r["margin"], r["samples"]) for r in members if r["claim"] == claim and r["samples"])
                if points:
                    label = f"{claim}: {discordance:.3f} ({source})"
                    x, y = zip(*points, strict=True)
                    axes.plot([100 * m for m in x], y, color=colour, linestyle=dashes, marker="o", markersize=4, label=label)
        axes.set_xscale("log")
        axes.set_yscale("log")
        margins = sorted({100 * r["margin"] for r in rows})
        axes.set_xticks(margins, [f"{m:g}" for m in margins])
        axes.minorticks_off()
        axes.set_xlabel("margin, or difference to be seen (points)")
        axes.set_ylabel("samples in all")
        axes.set_title(f"samples for power {power:g} at alpha {rows[0]['alpha']:g}, by discordance", loc="left")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8, frameon=False)
    return style.save(made, folder / "power.png")
