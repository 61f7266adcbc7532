"""The state of running processes: written whole, read by others, gone at the end, and never an error of the work."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from harness.core.activity import CURRENT
from harness.core.partial_files import host_id
from harness.study import running
from harness.study.parts import start_of
from harness.study.planned import SAMPLES, Planned
from harness.study.running import FOLDER, Running, State, states_in, telling

PLAN = [Planned(SAMPLES, "toy", {"length": 1024, "method": "any"}, {"last": 2}, task=task, count=4) for task in ("a", "b")]
NOBODY = 2**22 + 1
"""A number that no process has."""


def leave(study: Path, state: State, name: str = "other-1.json") -> Path:
    """Put a state where a process would have left it."""
    path = study / FOLDER / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.encode(state))
    return path


def state(**fields: object) -> State:
    """A state of a process that died on this host."""
    usual: dict[str, object] = {"host": "node1", "host_id": host_id(), "pid": NOBODY, "began": time.time() - 100}
    return State(**{**usual, "wrote": time.time() - 50, "command": "python -m harness", **fields})  # type: ignore[arg-type]


def test_a_process_tells_of_itself_as_long_as_it_works(tmp_path: Path) -> None:
    with telling() as own:
        own.enter(tmp_path, PLAN)
        own.enter(tmp_path)
        CURRENT.begin("arm 1024", total=8)
        CURRENT.open_cells(1024, {"c1": 4, "c2": 4})
        CURRENT.count(["c1", "c1", "of no cell here"])
        own.write()
        (told,) = states_in(tmp_path)
        assert (tmp_path / FOLDER / f"{platform.node()}-{os.getpid()}.json").exists()
        assert told.is_alive and told.pid == os.getpid() and told.planned == PLAN
        assert told.doing.text == "arm 1024" and told.doing.cells == {"c1": (2, 4), "c2": (0, 4)}
        CURRENT.end()
        own.write()
        assert states_in(tmp_path)[0].doing.text == "" and len(list((tmp_path / FOLDER).iterdir())) == 1
    assert not (tmp_path / FOLDER).exists()


@pytest.mark.parametrize("at", ["a file", "no folder"])
def test_where_it_can_not_be_written_the_work_goes_on(at: str, tmp_path: Path) -> None:
    study = tmp_path / "study"
    if at == "a file":
        study.mkdir()
        (study / FOLDER).write_text("in the way")
    else:
        study = Path("/dev/null/study")
    own = Running()
    own.enter(study, PLAN)
    own.write()
    own.remove()
    assert states_in(study) == []


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    own = Running()
    own.enter(tmp_path, PLAN)
    own.write()
    assert list((tmp_path / FOLDER).iterdir()) == []


def test_the_dead_are_known_and_taken_away(tmp_path: Path) -> None:
    ours, theirs = state(), state(host_id="0" * 12)
    assert not ours.is_alive and theirs.is_alive, "a host that can't be asked: it wrote a moment ago"
    assert not replace(theirs, wrote=time.time() - running.SILENT_SECONDS - 1).is_alive
    assert replace(ours, pid=os.getpid(), start=start_of(os.getpid()), wrote=0).is_alive
    assert not replace(ours, pid=os.getpid(), start=1).is_alive, "another process has its number now"
    dead, silent = leave(tmp_path, ours), leave(tmp_path, replace(theirs, wrote=0), "other-2.json")
    other, broken = leave(tmp_path, theirs, "other-3.json"), tmp_path / FOLDER / "other-4.json"
    broken.write_text("{")
    assert len(states_in(tmp_path)) == 3
    own = Running()
    own.enter(tmp_path)
    own.write()
    assert not dead.exists() and not silent.exists() and other.exists() and broken.exists()


def test_a_fork_takes_nothing_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = Running()
    own.enter(tmp_path)
    own.write()
    monkeypatch.setattr(own, "pid", NOBODY)
    own.remove()
    assert len(states_in(tmp_path)) == 1
