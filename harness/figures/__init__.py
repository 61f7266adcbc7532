"""Pictures of a study, made from the rows of its leaderboard."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.leaderboard import Row


def write_all(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write every picture that the rows allow into `folder`; returns their paths, the Pareto picture first."""
    from harness.figures import blocks, lengths, pareto  # matplotlib takes a second to import

    return [*pareto.write(rows, folder), *lengths.write(rows, folder), *blocks.write(rows, folder)]
