"""Samples against margin: how many a claim needs, a line for each discordance."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.lines import Line2D

from harness.report.figures import style
from harness.report.figures.few import MOST
from harness.report.figures.looks import series_looks
from harness.report.figures.signs import PALE
from harness.report.power import SamplesNeeded

CLAIMS = {"non-inferior": "to show a loss below a margin", "differs": "to see a difference"}
"""Claims of the rows, and how the title of a panel says them."""


def write(rows: Sequence[SamplesNeeded], folder: Path) -> Path:
    """Write `power.png` from the rows of power.csv, at the lowest power that was asked for."""
    power = min(row.power for row in rows)
    lines: dict[tuple[str, float], list[SamplesNeeded]] = {}
    for row in rows:
        if row.power == power:
            lines.setdefault((row.source, row.discordance), []).append(row)
    looks = series_looks(f"{discordance:.3f} ({source})" for source, discordance in lines)
    coloured = {*list(looks)[:: -(-len(looks) // MOST)]} if looks else set()
    figure = style.new_figure(9.0, 4.4)
    with matplotlib.rc_context(style.RC):
        panels = figure.subplots(1, 2, sharey=True)
        margins = sorted({100 * row.margin for row in rows})
        handles = [
            Line2D([], [], color=looks[name].colour, marker=looks[name].marker, markersize=4, label=name)
            for name in looks
            if name in coloured
        ]
        for axes, claim in zip(panels, CLAIMS, strict=True):
            for name, members in zip(looks, lines.values(), strict=True):
                points = sorted((row.margin, row.samples) for row in members if row.claim == claim and row.samples)
                if points:
                    x, y = zip(*points, strict=True)
                    colour, marker = looks[name] if name in coloured else (PALE, "")
                    axes.plot([100 * m for m in x], y, color=colour, marker=marker, markersize=4, zorder=2 + (name in coloured))
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.set_xticks(margins, [f"{margin:g}" for margin in margins])
            axes.minorticks_off()
            axes.set_title(CLAIMS[claim], loc="left")
            axes.set_xlabel(f"{'margin' if claim == 'non-inferior' else 'difference'} (points), {style.LOG}")
        style.log_axis(panels[0].yaxis)
        panels[0].set_ylabel(f"samples in all, {style.LOG}")
        style.set_title(figure, f"Samples for power {power:g} at alpha {rows[0].alpha:g}, by discordance")
        pale = f" Pale: {len(looks) - len(coloured)} more between them, in power.csv." if len(looks) > len(coloured) else ""
        style.set_small_print(figure, f"Discordance: the share of samples that only one of method and dense gets right.{pale}")
        style.add_legend(figure, handles)
    return style.save(figure, folder / "power.png")
