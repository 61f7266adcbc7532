"""Pictures of a study, made from the rows of its leaderboard."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.report.rows import Row
from harness.report.stale import NAMES, ROWS, remove_stale

PICTURES = NAMES[ROWS]
"""The names of pictures that are made of the rows of a study alone, in studies of one model and device."""


def write_figures(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write every picture that the rows allow into `folder`; return their paths, the Pareto picture first. Pictures that an
    earlier call left under such names go."""
    from harness.report.figures import (  # matplotlib takes a second to import
        accuracy,
        by_block_size,
        by_length,
        decode_speed,
        dense_by_task,
        methods_by_task,
        pareto,
        perplexity,
        ttft,
    )

    pictures = (pareto, accuracy, by_length, by_block_size, dense_by_task, methods_by_task, perplexity, ttft, decode_speed)
    paths = [path for picture in pictures for path in picture.write(rows, folder)]
    remove_stale(folder, ROWS, paths)  # of when the rows allowed another: what it compares need not be comparable
    return paths
