"""Accuracy by length: what a method that looks good at 4k does at 128k, all methods at one sparsity."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.report.at_request import at_request
from harness.report.figures import picture_rows, style
from harness.report.figures.trend import Trend, draw, has_line
from harness.report.rows import Row
from harness.report.stale import ROWS

LENGTHS = Trend("length", "length (tokens)", style.tokens)


def write(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write `lengths.png` for the sparsity with most points (the nearest to 0.9 of those), one picture per model and
    device. Nothing is written where no line of a method has two lengths at the density asked for."""
    sets = picture_rows.by_model(rows)
    paths, numbers = [], picture_rows.numbers(sets)
    for key, members in sorted(sets.items()):
        sparse = [row for row in at_request(members).averages if not row.is_baseline and row.sparsity is not None]
        if len({row.length for row in sparse}) < 2:
            continue
        sparsity = picture_rows.usual_sparsity(row.sparsity for row in sparse)
        shown = [row for row in members if row.is_baseline or row.sparsity == sparsity]
        if not has_line(shown, LENGTHS):
            continue
        number = f"_{numbers[key]}" if len(set(numbers.values())) > 1 else ""
        title = f"{key[0]}: accuracy by length at density {1 - sparsity:.3g}"
        name = f"lengths{number}{picture_rows.prompts_suffix(members)}.png"
        paths.append(style.save(draw(shown, LENGTHS, title, key[1]), folder / name, mark=ROWS))
    return paths
