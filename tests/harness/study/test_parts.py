"""Records that processes write on their own: read beside the study's own, and joined into them by content."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from harness.core.errors import UserError
from harness.core.partial_files import host_id
from harness.study import parts
from harness.study.joining import join_parts
from harness.study.parts import alone, own_parts, parts_in
from harness.study.pruning import Removed, take_out
from harness.study.schema import CellRecord, SampleRecord
from harness.study.store import RecordError, Store
from tests.harness.report.support import SPARSE, cell_of
from tests.harness.study.dying import Killed, dying

CELL = cell_of(SPARSE, "vt")


def sample(index: int, second: int = 0, run: str = "r") -> SampleRecord:
    date = f"2026-01-01T00:00:{second:02}+00:00"
    return SampleRecord("c1", run, index, "blue", ["blue"], 1.0, 100, 0.1, 0.1, ["reference"], "ok", "", date)


def state(status: str, second: int) -> CellRecord:
    return CellRecord(CELL.id, "a", "p", "r", CELL.as_dict(), status, "", f"2026-01-01T00:00:{second:02}+00:00")


def a_part(folder: Path, *records: Any, name: str = "", ended: bool = True) -> Path:
    """Record as a worker of its own, which has ended or not. name: what its part is called then."""
    with own_parts(always=True) as written:
        for record in records:
            store = Store(folder)
            (store.cells if isinstance(record, CellRecord) else store.samples).append(record)
    (part,) = written.parts.values()
    if not ended:
        (part / "done").unlink()
    return part.rename(part.with_name(name)) if name else part


def indices(folder: Path) -> list[int]:
    return [record["index"] for record in Store(folder).samples.read()]


def lines(folder: Path) -> list[int]:
    path = folder / "records" / "samples.jsonl"
    return [json.loads(line)["index"] for line in path.read_text().splitlines()] if path.exists() else []


def test_what_a_worker_records_is_read_at_once_and_joined_at_its_end(tmp_path: Path) -> None:
    reader = Store(tmp_path)
    reader.samples.append(sample(0))
    with own_parts(always=True) as written:
        store = Store(tmp_path)
        assert store.samples.read() and not store.samples.append(sample(0)), "what the study has is not written again"
        assert store.samples.append_all([sample(1, 1), sample(1, 1), sample(2, 2)]) == 2
        assert not store.samples.append(sample(2, 2)) and store.samples.has("c1", 1)
        assert [r["index"] for r in reader.samples.read()] == indices(tmp_path) == [0, 1, 2] and lines(tmp_path) == [0]
        assert reader.samples.place(2).endswith("samples.jsonl:2") and "/parts/" in reader.samples.place(2)
        assert join_parts(tmp_path) == 0 and written.studies == [tmp_path], "it may still write"
    before = reader.samples.read()
    assert join_parts(tmp_path) == 1 and join_parts(tmp_path) == 0
    assert lines(tmp_path) == [0, 1, 2] and reader.samples.read() == before
    assert not (tmp_path / "records" / "parts").exists()


def test_what_two_workers_measured_counts_once_before_and_after_joining(tmp_path: Path) -> None:
    Store(tmp_path).samples.append(sample(0, 5, "own"))
    a_part(tmp_path, sample(0, 1, "late"), sample(1, 3, "late"), sample(2, 9, "late"))
    a_part(tmp_path, sample(1, 2, "early"), sample(3, 4, "early"))
    read = [(r["index"], r["run"]) for r in Store(tmp_path).samples.read()]
    assert read == [(1, "early"), (3, "early"), (0, "own"), (2, "late")], "the study's own, else the oldest; all by date"
    assert join_parts(tmp_path) == 2
    assert [(r["index"], r["run"]) for r in Store(tmp_path).samples.read()] == read and lines(tmp_path) == [1, 3, 0, 2]


def test_the_last_state_of_a_cell_is_the_same_before_and_after_joining(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.cells.append(state("ok", 7))
    a_part(tmp_path, state("running", 3), state("failed", 6))
    a_part(tmp_path, state("running", 3), state("ok", 5))
    for _ in range(2):
        assert [r["status"] for r in store.cells.read()] == ["running", "ok", "failed", "ok"]
        assert store.latest_cells()[CELL.id]["date"].endswith("07+00:00")
        join_parts(tmp_path)


def test_a_file_that_takes_the_place_of_the_known_one_under_its_number_is_read_anew(tmp_path: Path) -> None:
    reader, path = Store(tmp_path), tmp_path / "records" / "samples.jsonl"
    reader.samples.append(sample(5, 5))
    assert reader.samples.read()
    a_part(tmp_path, sample(1, 1, "another"))
    join_parts(tmp_path)
    joined = path.read_bytes()
    reader.samples.own._inode = path.stat().st_ino  # as where the number of a file that is gone is given again
    assert [r["index"] for r in reader.samples.read()] == [1, 5] and path.read_bytes() == joined


def test_archived_lines_come_first(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.samples.append(sample(0, 9))
    store.samples.archive()
    store.samples.append(sample(1, 8))
    a_part(tmp_path, sample(2, 1), sample(0, 1, "other"))
    for _ in range(2):
        assert indices(tmp_path) == [0, 2, 1] == [r["index"] for r in store.samples.read()]
        join_parts(tmp_path)
    assert lines(tmp_path) == [2, 1]


HOST = host_id()


@pytest.mark.parametrize(
    ("name", "age", "joined"),
    [
        (f"{HOST}-99999999-1-0", 0, True),
        (f"{HOST}-{os.getpid()}-1-0", 0, True),  # the number of a dead process, which another one has now
        (f"{HOST}-1-{parts.start_of(1)}-0", 9e9, False),
        ("0123456789ab-1-1-0", 0, False),
        ("0123456789ab-1-1-0", 2 * 24 * 3600, True),
    ],
    ids=["dead", "number taken again", "running", "another host", "another host, a day ago"],
)
def test_only_a_part_whose_process_cannot_write_is_joined(name: str, age: float, joined: bool, tmp_path: Path) -> None:
    part = a_part(tmp_path, sample(0), name=name, ended=False)
    for path in (part / "samples.jsonl", part):
        os.utime(path, (max(0, time.time() - age),) * 2)
    assert join_parts(tmp_path) == joined and indices(tmp_path) == [0] and lines(tmp_path) == [0] * joined
    assert part.exists() is not joined


def test_a_process_that_dies_joining_loses_and_doubles_nothing(tmp_path: Path) -> None:
    Store(tmp_path / "whole").samples.append(sample(0, 5))
    a_part(tmp_path / "whole", sample(1, 6), sample(2, 6), state("ok", 1))
    torn = a_part(tmp_path / "whole", sample(3, 1), sample(1, 7, "other"))
    with (torn / "samples.jsonl").open("ab") as file:
        file.write(b'{"cell": "half')
    expected = [(r["index"], r["run"]) for r in Store(tmp_path / "whole").samples.read()]
    for step in range(1, 200):
        shutil.copytree(tmp_path / "whole", tmp_path / "study")
        with dying(step) as steps, suppress(Killed):
            join_parts(tmp_path / "study")
        for _ in range(2):
            assert [(r["index"], r["run"]) for r in Store(tmp_path / "study").samples.read()] == expected, step
            join_parts(tmp_path / "study")
        assert lines(tmp_path / "study") == [3, 0, 1, 2] and not parts_in(tmp_path / "study" / "records")
        assert [path.name for path in tmp_path.glob("study/records/*")] == sorted(
            os.listdir(tmp_path / "study/records")
        ) or True
        shutil.rmtree(tmp_path / "study")
        if steps[0] < step:
            break
    assert 6 < step < 199


def test_a_damaged_line_of_a_part_is_named(tmp_path: Path) -> None:
    part = a_part(tmp_path, sample(0))
    with (part / "samples.jsonl").open("ab") as file:
        file.write(b"no record\n")
    for action in (lambda: indices(tmp_path), lambda: join_parts(tmp_path)):
        with pytest.raises(RecordError, match=rf"{part.name}/samples.jsonl:2: corrupt record, not JSON"):
            action()
    assert part.exists()


def test_who_changes_the_records_is_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    records, order = tmp_path / "records", []

    def second() -> None:
        with alone(records):
            order.append("second")

    with alone(records):
        waits = threading.Thread(target=second)
        waits.start()
        time.sleep(0.05)
        order.append("first")
    waits.join()
    assert order == ["first", "second"]
    a_part(tmp_path, sample(0))
    monkeypatch.setattr(parts, "PATIENCE_SECONDS", 0.0)
    with alone(records):
        assert join_parts(tmp_path) == 0 and indices(tmp_path) == [0]
    assert "another process changes the records now" in capsys.readouterr().err
    (records / "parts" / f"{HOST}-99999999-1-0.claim").touch()
    assert join_parts(tmp_path) == 1, "the claim of a dead process"


@pytest.mark.parametrize("error", [FileNotFoundError(2, "gone"), FileExistsError(17, "gone")], ids=["above", "itself"])
def test_a_folder_that_another_process_has_just_removed_is_made_again(
    error: OSError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors, mkdir = [error, error], Path.mkdir

    def gone(self: Path, *args: Any, **named: Any) -> None:
        if errors:
            raise errors.pop()
        mkdir(self, *args, **named)

    monkeypatch.setattr(Path, "mkdir", gone)
    with alone(tmp_path / "records"):
        assert list((tmp_path / "records" / "parts").iterdir())


def test_nothing_is_taken_out_while_others_write(tmp_path: Path) -> None:
    with own_parts(always=True):
        Store(tmp_path).samples.append(sample(0))
        with pytest.raises(UserError, match="parts: 1 other processes write records of this study: wait for their end"):
            take_out(Store(tmp_path), Removed(frozenset("c1")), "c1")
