"""Accuracy by length: what a method that looks good at 4k does at 128k, all methods at one sparsity."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from harness.report.figures import style
from harness.report.figures.trend import Trend, draw
from harness.report.leaderboard import is_baseline_row

Row = style.Row
PREFERRED = 0.9
LENGTHS = Trend("length", "length (tokens)", style.tokens)


def write(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write `lengths.png` for the sparsity with most points (the nearest to 0.9 of those), one picture per model and
    device. Nothing is written where no method was measured at two lengths or more."""
    sets = style.by_model(rows)
    paths = []
    for number, ((model, device), members) in enumerate(sorted(sets.items())):
        sparse = [r for r in members if not is_baseline_row(r) and r["sparsity"] is not None]
        if len({r["length"] for r in sparse}) < 2:
            continue
        counts = Counter(r["sparsity"] for r in sparse)
        sparsity = max(counts, key=lambda s: (counts[s], -abs(s - PREFERRED)))
        kept = [r for r in members if is_baseline_row(r) or r["sparsity"] == sparsity]
        name = "lengths.png" if len(sets) == 1 else f"lengths_{number}.png"
        title = f"{model}: accuracy by length at sparsity {sparsity:g}"
        paths.append(style.save(draw(kept, LENGTHS, title, device), folder / name))
    return paths
