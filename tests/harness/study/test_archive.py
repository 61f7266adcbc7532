"""Records of a finished study, compressed: read as before, nothing lost or doubled, whenever the process dies."""

from __future__ import annotations

import lzma
import os
from pathlib import Path

import pytest

from harness.study.schema import CellRecord, SampleRecord
from harness.study.store import RecordError, RecordFile
from tests.harness.report.support import SPARSE, cell_of


def sample(index: int) -> SampleRecord:
    return SampleRecord(
        cell="c",
        run="r",
        index=index,
        prediction="blue\u2028\n",
        answers=["blue"],
        score=1.0,
        tokens=9,
        prefill_s=0.1,
        density=0.1,
        kernels=["reference"],
        status="ok",
        reason="",
        date="2026-01-01T00:00:00+00:00",
    )


def cell(status: str) -> CellRecord:
    identity = cell_of(SPARSE, "vt").as_dict()
    return CellRecord("c", "a", "p", "r", identity, status, reason="", date="2026-01-01T00:00:00+00:00")


def filled(path: Path, n: int = 3) -> RecordFile:
    file = RecordFile(path / "samples.jsonl", "samples")
    for index in range(n):
        assert file.append(sample(index))
    return file


def indices(file: RecordFile) -> list[int]:
    return [r["index"] for r in file.read()]


def test_archived_records_are_read_and_extended(tmp_path: Path) -> None:
    file = filled(tmp_path)
    before = file.read()
    assert file.archive() == 3
    assert file.path.read_bytes() == b""
    assert file.read() == RecordFile(file.path, "samples").read() == before
    again = RecordFile(file.path, "samples")
    assert not again.append(sample(1)), "what is archived is not measured again"
    assert again.append(sample(3))
    assert indices(file) == [0, 1, 2, 3]
    assert again.archive() == 4
    assert indices(RecordFile(file.path, "samples")) == [0, 1, 2, 3]


def test_the_archive_alone_is_enough(tmp_path: Path) -> None:
    file = filled(tmp_path)
    file.archive()
    file.path.unlink()
    alone = RecordFile(file.path, "samples")
    assert alone.exists() and indices(alone) == [0, 1, 2]
    assert alone.append(sample(3)) and indices(alone) == [0, 1, 2, 3]


def test_equal_records_make_equal_archives(tmp_path: Path) -> None:
    files = [filled(tmp_path / name) for name in "ab"]
    for file in files:
        file.archive()
    assert files[0].archived.read_bytes() == files[1].archived.read_bytes()


@pytest.mark.parametrize("dies_at", ["replace", "ftruncate"])
def test_a_kill_while_archiving_loses_and_doubles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies_at: str
) -> None:
    filled(tmp_path).archive()
    file = RecordFile(tmp_path / "samples.jsonl", "samples")
    file.append(sample(3))
    cells = RecordFile(tmp_path / "cells.jsonl", "cells")
    for status in ("running", "ok", "failed"):
        cells.append(cell(status))

    class Killed(BaseException):
        pass

    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(os, dies_at, die)
        for each in (file, cells):
            with pytest.raises(Killed):
                each.archive()
    after, states = (RecordFile(f.path, f.kind) for f in (file, cells))
    assert indices(after) == [0, 1, 2, 3]
    assert [c["status"] for c in states.read()] == ["running", "ok", "failed"]
    assert after.archive() == 4 and states.archive() == 3
    assert [c["status"] for c in RecordFile(cells.path, "cells").read()] == ["running", "ok", "failed"]


def test_others_may_read_and_append_meanwhile(tmp_path: Path) -> None:
    file = filled(tmp_path)
    other = RecordFile(file.path, "samples")
    assert indices(other) == [0, 1, 2]  # it has read up to the end of a file that shrinks now
    file.archive()
    file.append(sample(3))
    assert indices(other) == [0, 1, 2, 3]
    assert other.append(sample(4)) and not other.append(sample(0))
    assert file.archive() == 5 and indices(other) == [0, 1, 2, 3, 4]


def test_a_torn_line_is_set_aside_first(tmp_path: Path) -> None:
    file = filled(tmp_path)
    with open(file.path, "ab") as raw:
        raw.write(b'{"schema":1,"ce')
    assert file.archive() == 3
    assert Path(f"{file.path}.torn").read_bytes() == b'{"schema":1,"ce\n'


def test_a_broken_archive_is_named(tmp_path: Path) -> None:
    file = filled(tmp_path)
    file.archive()
    whole = file.archived.read_bytes()
    file.archived.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RecordError, match=r"samples\.jsonl\.xz: not readable as xz"):
        RecordFile(file.path, "samples").append(sample(9))
    file.archived.write_bytes(lzma.compress(b'{"schema":1}\n'))
    with pytest.raises(RecordError, match=r"samples\.jsonl\.xz:1: corrupt record"):
        RecordFile(file.path, "samples").read()


def test_nothing_recorded_makes_no_archive(tmp_path: Path) -> None:
    file = RecordFile(tmp_path / "samples.jsonl", "samples")
    assert file.archive() == 0 and not file.exists()
