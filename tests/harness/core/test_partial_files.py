"""What a killed process was writing is removed by the next one that writes there; what a living one writes is not."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from harness.core import partial_files
from harness.core.files import write_atomically
from harness.core.partial_files import ABANDONED_SECONDS, NAME, host_id, is_running, partial_path, remove_abandoned

ELSEWHERE = "0123456789ab"
"""A host that is not this one."""


@pytest.fixture(scope="module")
def dead() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def half_written(folder: Path, process: int, host: str, seconds_ago: float = 0.0) -> Path:
    path = folder / f".table.csv.{host}-{process}.partial"
    path.write_bytes(b"half")
    then = time.time() - seconds_ago
    os.utime(path, (then, then))
    return path


def test_what_a_dead_process_left_is_removed_when_another_writes(tmp_path: Path, dead: int) -> None:
    left = half_written(tmp_path, dead, host_id())
    write_atomically(tmp_path / "other.csv", lambda file: file.write(b"whole"))
    assert not left.exists() and [path.name for path in tmp_path.iterdir()] == ["other.csv"]


def test_what_is_being_written_stays(tmp_path: Path, dead: int) -> None:
    own = half_written(tmp_path, os.getpid(), host_id())
    parents = half_written(tmp_path, os.getppid(), host_id())
    elsewhere = half_written(tmp_path, dead, ELSEWHERE, ABANDONED_SECONDS - 60)
    remove_abandoned([tmp_path, tmp_path / "no such folder"])
    assert own.exists() and parents.exists() and elsewhere.exists()


def test_of_another_host_a_day_without_a_write_is_enough(tmp_path: Path) -> None:
    left = half_written(tmp_path, os.getpid(), ELSEWHERE, ABANDONED_SECONDS + 60)
    remove_abandoned([tmp_path])
    assert not left.exists()


def test_files_of_others_stay(tmp_path: Path, dead: int) -> None:
    names = (
        f".table.csv.{dead}",
        f"table.{host_id()}-{dead}.partial",
        ".partial",
        f".x.{host_id()}-{dead}.partial.bak",
        "a.tmp",
    )
    for name in names:
        (tmp_path / name).write_text("of somebody")
    (tmp_path / f".folder.{host_id()}-{dead}.partial").mkdir()
    (tmp_path / f".folder.{host_id()}-{dead}.partial" / "file").write_text("half")
    remove_abandoned([tmp_path])
    assert {path.name for path in tmp_path.iterdir()} == set(names)


def test_a_process_that_was_not_waited_for_is_dead() -> None:
    process = subprocess.Popen(["true"])
    deadline = time.monotonic() + 20
    while is_running(process.pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_running(process.pid)
    os.kill(process.pid, 0)  # it is still in the table of processes
    process.wait()
    assert is_running(os.getpid()) and is_running(1) and not is_running(2**40)


def test_names_are_of_this_process_and_fit_into_a_folder(tmp_path: Path) -> None:
    match = NAME.fullmatch(partial_path(tmp_path / "table.csv").name)
    assert match is not None and match["host"] == host_id() and int(match["process"]) == os.getpid()
    longest = write_atomically(tmp_path / ("ä" * 127), lambda file: file.write(b"whole"))
    assert longest.read_bytes() == b"whole"


def test_without_proc_a_process_is_asked_for_all_the_same(monkeypatch: pytest.MonkeyPatch, dead: int) -> None:
    def missing(*_: object) -> bytes:
        raise FileNotFoundError

    monkeypatch.setattr(partial_files.Path, "read_bytes", missing)
    monkeypatch.setattr(partial_files.Path, "read_text", missing)
    assert is_running(os.getpid()) and not is_running(dead)
