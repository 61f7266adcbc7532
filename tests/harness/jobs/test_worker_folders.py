"""The folders of workers' files: those of commands that failed are kept, a few of them, for a week."""

from __future__ import annotations

import os
import time
from pathlib import Path

from harness.jobs.worker_folders import LONGEST_SECONDS, MOST_FAILED, folder_of_command, remove_old


def made(parent: Path, day: int, name: str = "090000-77") -> Path:
    """Make a folder that a command left on a day of a month."""
    folder = parent / f"202601{day:02}-{name}"
    (folder / "1_1").mkdir(parents=True)
    (folder / "1_1" / "worker-0.log").write_text("said")
    return folder


def aged(folder: Path, seconds: float) -> Path:
    """Return a folder as if nothing in it had been written for so long."""
    for path in (*folder.rglob("*"), folder):
        os.utime(path, (time.time() - seconds,) * 2)
    return folder


def test_what_ended_well_goes_and_what_failed_stays(tmp_path: Path) -> None:
    well, failed = made(tmp_path, 1), made(tmp_path, 2)
    with folder_of_command(well) as ending:
        assert len(list(well.glob("running-*"))) == 1
        ending.well = True
    with folder_of_command(failed):
        pass
    assert not well.exists() and [path.name for path in failed.iterdir()] == ["1_1"]


def test_a_few_of_those_that_failed_stay_and_nothing_else_is_touched(tmp_path: Path) -> None:
    folders = [made(tmp_path, day) for day in range(1, MOST_FAILED + 4)]
    (folders[0] / f"running-{'0' * 12}-5").touch()  # on another host
    (folders[1] / "running-note").touch()
    own = made(tmp_path, 1, "notes")
    remove_old(tmp_path)
    assert [path for path in folders if path.exists()] == [folders[0], *folders[3:]] and own.exists()
    aged(folders[0], LONGEST_SECONDS + 60)
    aged(folders[-1], LONGEST_SECONDS + 60)
    remove_old(tmp_path)
    assert not folders[0].exists() and not folders[-1].exists() and folders[-2].exists()
    remove_old(tmp_path / "none")
