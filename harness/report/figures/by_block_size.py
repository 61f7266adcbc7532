"""Accuracy by block size: what finer blocks keep at the same density."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from harness.report.at_request import at_request
from harness.report.figures import picture_rows, style
from harness.report.figures.trend import Trend, draw, has_line
from harness.report.rows import Row
from harness.report.stale import ROWS

BLOCKS = Trend("block_size", "block size (tokens)", str)


def write(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write `blocks_LENGTH_SPARSITY.png` for every length and sparsity at which a method was measured with two block
    sizes or more at the density asked for."""
    model_sets = picture_rows.by_model(rows)
    paths, numbers = [], picture_rows.numbers(model_sets)
    for (model, device), members in sorted(model_sets.items()):
        sizes: dict[tuple[int, float], set[int]] = defaultdict(set)
        for row in at_request(members).averages:
            if row.block_size is not None and row.sparsity is not None:
                sizes[row.length, row.sparsity].add(row.block_size)
        number = f"_{numbers[model, device]}" if numbers[model, device] else ""
        for length, sparsity in sorted(place for place, measured in sizes.items() if len(measured) > 1):
            at_length = [row for row in members if row.length == length]
            shown = [row for row in at_length if row.block_size is None or row.sparsity == sparsity]
            if not has_line(shown, BLOCKS):
                continue
            title = f"{model} at {style.tokens(length)} tokens: accuracy by block size at density {1 - sparsity:.3g}"
            name = f"blocks_{length}_{sparsity:g}{number}{picture_rows.prompts_suffix(members)}.png"
            paths.append(style.save(draw(shown, BLOCKS, title, device), folder / name, mark=ROWS))
    return paths
