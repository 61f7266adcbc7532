"""Pictures of a study, made from the rows of its leaderboard."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.report.leaderboard import Row


def write_all(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write every picture that the rows allow into `folder`; returns their paths, the Pareto picture first."""
    from harness.report.figures import (  # matplotlib takes a second to import
        accuracy,
        by_block_size,
        by_length,
        dense_by_task,
        methods_by_task,
        pareto,
        perplexity,
    )

    writers = (pareto, accuracy, by_length, by_block_size, dense_by_task, methods_by_task, perplexity)
    return [path for each in writers for path in each.write(rows, folder)]
