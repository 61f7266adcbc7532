"""Accuracy of many methods as a heatmap: methods from top to bottom, densities from left to right, a panel per length."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from harness.report.at_request import at_request
from harness.report.figures import heatmap, picture_rows, style
from harness.report.lines import rows_by_line
from harness.report.notes import left_out_note
from harness.report.rows import Row
from harness.report.stale import ROWS
from harness.study.schema import Status

LOW = 30.0
"""Accuracy in per cent of the darkest colour: what knows nothing of the text reaches about that."""
NAMES = 2.4
"""Inches of the names at the left."""
PANEL = 2.0
"""Inches of a panel at least: its title's."""


def write(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write `accuracy.png` for studies of more methods than a picture of lines can tell apart, one per model and device."""
    sets = picture_rows.by_model(rows)
    paths, numbers = [], picture_rows.numbers(sets)
    for (model, device), members in sorted(sets.items()):
        sparse = [row for row in at_request(members).averages if not row.is_baseline]
        if len({row.method for row in sparse}) > style.MANY and any(row.sparsity is not None for row in sparse):
            number = numbers[model, device]
            suffix = (f"_{number}" if number else "") + picture_rows.prompts_suffix(members)
            paths.append(style.save(draw(members, model, device), folder / f"accuracy{suffix}.png", mark=ROWS))
    return paths


def draw(rows: Sequence[Row], model: str, device: str) -> Figure:
    """Return the figure for average rows of one model and device, methods by their mean accuracy over all densities and
    lengths. Rows off the density asked for are left out."""
    compared = at_request(rows)
    rows = compared.averages
    matched = [row for row in rows if row.sparsity is not None and not row.is_baseline]
    native = {(row.method, row.length): row for row in rows if row.sparsity is None}
    dense = {row.length: row for row in rows if row.is_baseline}
    lines = rows_by_line(matched, along="length", beside=compared.left_out)  # block sizes and kernels still tell lines apart
    names = sorted(lines, key=lambda name: -fmean(row.scored.accuracy for row in lines[name]))
    lengths = sorted({row.length for row in matched})
    sparsities = sorted({row.sparsity for row in matched if row.sparsity is not None})
    panel, height = max(PANEL, 0.45 * len(sparsities) + (1.5 if native else 0.4)), 1.0 + 0.3 * len(names)
    columns_of_panels = heatmap.columns_of(len(lengths), panel, NAMES)
    rows_of_panels = -(-len(lengths) // columns_of_panels)
    figure = style.new_figure(NAMES + panel * columns_of_panels, 0.9 + height * rows_of_panels)
    with matplotlib.rc_context(style.HEATMAP_RC):
        for i, length in enumerate(lengths):
            axes = figure.add_subplot(rows_of_panels, columns_of_panels, i + 1)
            table = np.full((len(names), len(sparsities)), np.nan)
            gated = np.zeros(table.shape, dtype=bool)
            for y, name in enumerate(names):
                for row in lines[name]:
                    if row.length == length and row.sparsity is not None:
                        x = sparsities.index(row.sparsity)
                        table[y, x], gated[y, x] = row.scored.percent, row.status == Status.GATED
            natives = [native.get((lines[name][0].method, length)) for name in names]
            columns = [f"{1 - sparsity:.2f}".lstrip("0").rstrip("0") for sparsity in sparsities]
            beside = _native_columns(natives) if native else []
            heatmap.panel(axes, table, names, columns, label="density", beside=beside, low=LOW, gated=gated)
            reference = f", dense {dense[length].scored.percent:.0f}" if length in dense else ""
            axes.set_title(f"{style.tokens(length)} tokens{reference}", loc="left", fontweight="bold", pad=16)
            if i % columns_of_panels:
                axes.set_yticklabels([])
        style.set_title(figure, f"{model}: accuracy at matched density (%)")
        widths = [100 * (row.scored.accuracy_high - row.scored.accuracy_low) for row in matched]
        text = f"95 % intervals are {min(widths):.0f} to {max(widths):.0f} points wide."
        text += " Native: at the method's own defaults.\n" if native else "\n"
        text += left_out_note(compared.left_out, matched)
        text += picture_rows.note(rows, device, bars="", gated="in brackets")
        style.set_small_print(figure, text)
    return figure


def _native_columns(rows: Sequence[Row | None]) -> list[tuple[str, list[str]]]:
    """Return accuracy and density of the rows at their methods' own defaults, as columns beside a panel."""
    accuracies = ["" if row is None else heatmap.number(row.scored.percent, gated=row.status == Status.GATED) for row in rows]
    densities = ["" if row is None or row.density is None else f"{row.density:.2f}".lstrip("0") for row in rows]
    return [("native", accuracies), ("density", densities)]
