"""Pictures of a study, made from the rows of its leaderboard."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.leaderboard import Row


def write_all(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write every picture that the rows allow into `folder`; returns their paths, the Pareto picture first."""
    from harness.figures import (
        accuracy,
        blocks,
        by_task,
        lengths,
        pareto,
        perplexity,
        tasks,
    )  # matplotlib takes a second to import

    writers = (pareto, accuracy, lengths, blocks, tasks, by_task, perplexity)
    return [path for each in writers for path in each.write(rows, folder)]
