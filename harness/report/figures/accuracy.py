"""Accuracy of many methods as a heatmap: methods from top to bottom, densities from left to right, a panel per length."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from harness.report import variants
from harness.report.figures import heatmap, style
from harness.report.leaderboard import is_baseline_row
from harness.study.schema import Status

Row = style.Row
LOW = 30.0
"""Accuracy in per cent of the darkest colour: what knows nothing of the text reaches about that."""

PANEL = 2.0
"""Inches of a panel at least: its title's."""


def write(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write `accuracy.png` for studies of more methods than a picture of lines can tell apart, one per model and device."""
    paths = []
    for number, ((model, device), members) in enumerate(sorted(style.by_model(rows).items())):
        sparse = [r for r in members if not is_baseline_row(r)]
        if len({r["method"] for r in sparse}) > style.MANY and any(r["sparsity"] is not None for r in sparse):
            suffix = f"_{number}" if number else ""
            paths.append(style.save(draw(members, model, device), folder / f"accuracy{suffix}.png"))
    return paths


def draw(rows: Sequence[Row], model: str, device: str) -> Figure:
    """The figure for average rows of one model and device, methods by their mean accuracy over all densities and lengths."""
    asked = [r for r in rows if r["sparsity"] is not None and not is_baseline_row(r)]
    native = {(r["method"], r["length"]): r for r in rows if r["sparsity"] is None}
    dense = {r["length"]: r for r in rows if is_baseline_row(r)}
    lines = variants.lines(asked, along="length")  # block sizes and kernels still tell lines apart
    order = sorted(lines, key=lambda name: -fmean(r["accuracy"] for r in lines[name]))
    lengths, sparsities = sorted({r["length"] for r in asked}), sorted({r["sparsity"] for r in asked})
    panels = len(lengths) * max(PANEL, 0.45 * len(sparsities) + (1.5 if native else 0.4))
    made = style.figure(2.4 + panels, 1.7 + 0.3 * len(order))
    with matplotlib.rc_context(style.RC | {"axes.grid": False}):
        for i, length in enumerate(lengths):
            axes = made.add_subplot(1, len(lengths), i + 1)
            table = np.full((len(order), len(sparsities)), np.nan)
            held = np.zeros(table.shape, dtype=bool)
            for y, name in enumerate(order):
                for row in lines[name]:
                    if row["length"] == length:
                        x = sparsities.index(row["sparsity"])
                        table[y, x], held[y, x] = 100 * row["accuracy"], row["status"] == Status.GATED
            own = [native.get((lines[name][0]["method"], length)) for name in order]
            beside = (
                [
                    ("native", ["" if r is None else _number(r) for r in own]),
                    ("density", ["" if r is None else f"{r['density']:.2f}".lstrip("0") for r in own]),
                ]
                if native
                else []
            )
            columns = [f"{1 - s:.2f}".lstrip("0").rstrip("0") for s in sparsities]
            heatmap.panel(axes, table, order, columns, label="density", beside=beside, low=LOW, held=held)
            reference = f", dense {100 * dense[length]['accuracy']:.0f}" if length in dense else ""
            axes.set_title(f"{style.tokens(length)} tokens{reference}", loc="left", fontweight="bold", pad=16)
            if i:
                axes.set_yticklabels([])
        style.title(made, f"{model}: accuracy at matched density (%)")
        widths = [100 * (r["accuracy_high"] - r["accuracy_low"]) for r in asked]
        text = f"95 % intervals are {min(widths):.0f} to {max(widths):.0f} points wide."
        text += " Native: at the method's own defaults.\n" if native else "\n"
        text += style.note(rows, device, bars="", gated="in brackets")
        style.foot(made, text)
    return made


def _number(row: Row) -> str:
    """Accuracy in per cent, in brackets where a sanity gate holds the row back."""
    return heatmap.number(100 * row["accuracy"], row["status"] == Status.GATED)
