"""Committed leaderboards and pictures come out of their records again, byte by byte."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import pytest
from PIL import Image

from harness.report.figures import dense_by_task
from harness.report.kernel_rows import write_kernel_leaderboard
from harness.report.leaderboard_csv import write_leaderboard
from harness.study.store import Store

RESULTS = Path(__file__).resolve().parents[3] / "results"


def study(name: str, folder: Path) -> Store:
    """A study with the committed records, in a folder of its own for what is made of them."""
    (folder / name).mkdir()
    (folder / name / "records").symlink_to(RESULTS / name / "records")
    return Store(folder / name)


@pytest.mark.parametrize("name", ["bundled_short", "gate_truths", "kernel_speed_cpu", "perplexity"])
def test_a_leaderboard(name: str, tmp_path: Path) -> None:
    path, rows = write_leaderboard(study(name, tmp_path))
    assert rows and path.read_bytes() == (RESULTS / name / "leaderboard.csv").read_bytes()


def test_a_leaderboard_of_kernels(tmp_path: Path) -> None:
    path, rows = write_kernel_leaderboard(study("decode_speed", tmp_path))
    assert rows and path.read_bytes() == (RESULTS / "decode_speed" / "leaderboard.csv").read_bytes()


def test_a_picture(tmp_path: Path) -> None:
    committed = RESULTS / "bundled_short" / "tasks.png"
    with Image.open(committed) as picture:
        drawn_by = str(picture.info["Software"])
    if f"version{version('matplotlib')}," not in drawn_by:
        pytest.skip(f"committed pictures are of {drawn_by}: another release draws other pixels")
    _, rows = write_leaderboard(study("bundled_short", tmp_path))
    (path,) = dense_by_task.write(rows, tmp_path)
    assert path.read_bytes() == committed.read_bytes()
