"""Pictures of a study, made from the rows of its leaderboard."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.report.rows import Row


def write_figures(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write every picture that the rows allow into `folder`; return their paths, the Pareto picture first."""
    from harness.report.figures import (  # matplotlib takes a second to import
        accuracy,
        by_block_size,
        by_length,
        dense_by_task,
        methods_by_task,
        pareto,
        perplexity,
    )

    pictures = (pareto, accuracy, by_length, by_block_size, dense_by_task, methods_by_task, perplexity)
    return [path for picture in pictures for path in picture.write(rows, folder)]
