"""Accuracy by block size: what finer blocks keep at the same density."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from harness.report.figures import style
from harness.report.figures.trend import Trend, draw

Row = style.Row
BLOCKS = Trend("block_size", "block size (tokens)", str)


def write(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write `blocks_LENGTH_SPARSITY.png` for every length and sparsity at which a method was measured with two block
    sizes or more."""
    paths = []
    for number, ((model, device), members) in enumerate(sorted(style.by_model(rows).items())):
        sizes: dict[tuple[int, float], set[int]] = defaultdict(set)
        for row in members:
            if row["block_size"] is not None and row["sparsity"] is not None:
                sizes[row["length"], row["sparsity"]].add(row["block_size"])
        for (length, sparsity), found in sorted(sizes.items()):
            if len(found) < 2:
                continue
            here = [r for r in members if r["length"] == length]
            kept = [r for r in here if r["block_size"] is None or r["sparsity"] == sparsity]
            title = f"{model} at {style.tokens(length)} tokens: accuracy by block size at sparsity {sparsity:g}"
            name = f"blocks_{length}_{sparsity:g}{f'_{number}' if number else ''}.png"
            paths.append(style.save(draw(kept, BLOCKS, title, device), folder / name))
    return paths
