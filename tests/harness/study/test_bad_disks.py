"""Folders in which nothing can be locked, as some over a network, and disks that are full: nothing is lost or doubled."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.core.errors import UserError
from harness.study import one_at_a_time as locks
from harness.study.joining import join_parts
from harness.study.one_at_a_time import one_at_a_time
from harness.study.parts import own_parts
from harness.study.pruning import bring_back, take_out
from harness.study.record_io import RecordError
from harness.study.selection import Selector, select
from harness.study.store import Store
from tests.harness.report.support import SPARSE, record_cell
from tests.harness.study.test_parts import indices, lines, sample, state


def failing(code: int) -> Callable[..., Any]:
    """What fails as the system does with this number."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    return fail


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """No file can be locked."""
    monkeypatch.setattr(fcntl, "flock", failing(errno.ENOLCK))


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS], ids=errno.errorcode.get)
def test_without_locks_each_process_writes_a_file_of_its_own(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fcntl, "flock", failing(code))
    with own_parts(always=False) as written:
        assert Store(tmp_path).samples.append(sample(0)) and not Store(tmp_path).samples.append(sample(0))
        assert Store(tmp_path).samples.append(sample(1))
        assert lines(tmp_path) == [] and indices(tmp_path) == [0, 1] and written.studies == [tmp_path]
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"warning: {tmp_path / 'records'}: locks don't work there ({os.strerror(code)}): each process writes records of its "
        "own in parts/, joined when it ends; nothing is lost"
    )
    assert join_parts(tmp_path) == 1 and lines(tmp_path) == indices(tmp_path) == [0, 1]
    assert Store(tmp_path).samples.archive() == 2 and indices(tmp_path) == [0, 1]


def test_a_lock_that_fails_otherwise_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", failing(errno.EIO))
    with pytest.raises(RecordError, match=r"samples.jsonl can't be locked \(Input/output error\); what is recorded is safe"):
        Store(tmp_path).samples.append(sample(0))


def test_without_locks_records_are_taken_out_and_come_back(tmp_path: Path, no_locks: None) -> None:
    with own_parts(always=False):
        record_cell(Store(tmp_path), SPARSE, "vt", [1.0, 0.0])
    join_parts(tmp_path)
    before = Store(tmp_path).samples.read()
    assert take_out(Store(tmp_path), select(Store(tmp_path), [Selector("all", lambda record: True)]).removed, "all") == 1
    assert not Store(tmp_path).samples.read()
    bring_back(Store(tmp_path), 1)
    assert Store(tmp_path).samples.read() == before


def test_without_locks_one_measures_dense_and_takes_over_from_the_dead(
    tmp_path: Path, no_locks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(locks, "LOOK_SECONDS", 0.01)
    path = tmp_path / "records" / "dense.held"
    path.parent.mkdir()
    path.write_text(f"{locks.process_name()[:12]}-99999999-1")  # of a dead process
    with one_at_a_time(tmp_path, "dense", lambda: said.append("waits")):
        assert path.read_text() == locks.process_name() and said == ["waits"]
    assert os.listdir(path.parent) == []
    path.write_text("0123456789ab-1-1")  # of another host, where it may go on
    monkeypatch.setattr(locks, "SILENT_SECONDS", 0.02)
    monkeypatch.setattr(locks, "SIGN_SECONDS", 0.001)
    with one_at_a_time(tmp_path, "dense", lambda: said.append("waits")):
        assert said == ["waits"] * 2
    assert os.listdir(path.parent) == []


FULL = {
    "write": failing(errno.ENOSPC),
    "fsync": failing(errno.ENOSPC),
    "short": lambda fd, line, write=os.write: write(fd, line[:20]),
    "quota": failing(errno.EDQUOT),
}


@pytest.mark.parametrize("always", [False, True], ids=["the study's file", "a part"])
@pytest.mark.parametrize("how", FULL)
def test_a_full_disk_loses_nothing(how: str, always: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with own_parts(always=always) as written:
        store = Store(tmp_path)
        store.samples.append(sample(0))
        folder = next(iter(written.parts.values()), tmp_path / "records")
        before = (folder / "samples.jsonl").read_bytes()
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync" if how == "fsync" else "write", FULL[how])
            with pytest.raises(RecordError, match=r"jsonl: (can't append|the disk took only a part).*recorded is safe"):
                store.samples.append(sample(1))
        assert (folder / "samples.jsonl").read_bytes() == before, "no half line"
        assert store.samples.append(sample(1))
    join_parts(tmp_path)
    assert indices(tmp_path) == lines(tmp_path) == [0, 1]


def test_a_disk_that_is_full_when_parts_are_joined_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Store(tmp_path).samples.append(sample(5, 5))
    for second in (1, 9):  # among the study's own lines, and after them
        with own_parts(always=True):
            Store(tmp_path).samples.append(sample(second, second))
        for name in ["fsync", "write"][: 1 + (second > 5)]:  # a file that takes the other's place isn't written by os.write
            with monkeypatch.context() as patch:
                patch.setattr(os, name, failing(errno.ENOSPC))
                with pytest.raises(UserError, match=r"No space left on device.*safe in .*parts"):
                    join_parts(tmp_path)
        assert second in indices(tmp_path)
        join_parts(tmp_path)
    assert lines(tmp_path) == indices(tmp_path) == [1, 5, 9]


def test_files_that_a_full_disk_does_not_let_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    store.samples.append(sample(0))
    with store.samples.path.open("ab") as file:
        file.write(b'{"cell": "half')
    real = os.open

    def full(path: Any, flags: int, *rest: Any, **named: Any) -> int:
        if flags & os.O_CREAT and not os.path.exists(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        return real(path, flags, *rest, **named)

    monkeypatch.setattr(os, "open", full)
    with pytest.raises(RecordError, match=r"samples.jsonl.torn can't be written \(No space left on device\)"):
        store.samples.append(sample(1))
    with pytest.raises(RecordError, match=r"cells.jsonl can't be made \(No space left on device\); what is recorded is safe"):
        store.cells.append(state("ok", 1))
    monkeypatch.undo()
    assert store.samples.append(sample(1)) and indices(tmp_path) == [0, 1]
