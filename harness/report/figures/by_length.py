"""Accuracy by length: what a method that looks good at 4k does at 128k, all methods at one sparsity."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.report.figures import picture_rows, style
from harness.report.figures.trend import Trend, draw
from harness.report.rows import Row

LENGTHS = Trend("length", "length (tokens)", style.tokens)


def write(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write `lengths.png` for the sparsity with most points (the nearest to 0.9 of those), one picture per model and
    device. Nothing is written where no method was measured at two lengths or more."""
    sets = picture_rows.by_model(rows)
    paths = []
    for number, ((model, device), members) in enumerate(sorted(sets.items())):
        sparse = [row for row in members if not row.is_baseline and row.sparsity is not None]
        if len({row.length for row in sparse}) < 2:
            continue
        sparsity = picture_rows.usual_sparsity(row.sparsity for row in sparse)
        shown = [row for row in members if row.is_baseline or row.sparsity == sparsity]
        name = "lengths.png" if len(sets) == 1 else f"lengths_{number}.png"
        title = f"{model}: accuracy by length at sparsity {sparsity:g}"
        paths.append(style.save(draw(shown, LENGTHS, title, device), folder / name))
    return paths
