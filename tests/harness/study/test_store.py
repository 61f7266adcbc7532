"""Append-only records: nothing lost, nothing doubled, nothing guessed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from harness.core.errors import UserError
from harness.study.schema import SampleRecord
from harness.study.store import RecordFile, Store


def sample(index: int, cell: str = "c1", score: float = 1.0) -> SampleRecord:
    return SampleRecord(
        cell=cell,
        run="r",
        index=index,
        prediction="blue",
        answers=["blue"],
        score=score,
        tokens=100,
        prefill_s=0.1,
        density=0.1,
        kernels=["reference"],
        status="ok",
        reason="",
        date="2026-01-01T00:00:00+00:00",
    )


def test_round_trip_and_no_doubles(tmp_path: Path) -> None:
    file = RecordFile(tmp_path / "deep" / "samples.jsonl", "samples")
    assert file.read() == []
    assert file.append(sample(0)) and file.append(sample(1))
    assert not file.append(sample(1)), "the same key again is not written"
    other = RecordFile(file.path, "samples")
    assert [r["index"] for r in other.read()] == [0, 1]
    assert other.has("c1", 1) and not other.has("c1", 2)
    assert not other.append(sample(0)) and other.append(sample(0, cell="c2"))
    assert len(file.read()) == 3, "a reader sees what others appended"


def test_unknown_numbers_are_null_not_nan(tmp_path: Path) -> None:
    file = RecordFile(tmp_path / "samples.jsonl", "samples")
    file.append(replace(sample(0), density=float("nan")))
    assert json.loads(file.path.read_text())["density"] is None


def test_what_could_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    file = RecordFile(tmp_path / "samples.jsonl", "samples")
    with pytest.raises(
        UserError, match=r"samples\.jsonl: a SampleRecord was measured that can't be recorded, score: expected a "
    ):
        file.append_all([sample(0), sample(1, score=float("nan"))])
    assert not file.path.exists()


def test_torn_last_line_is_set_aside(tmp_path: Path) -> None:
    file = RecordFile(tmp_path / "samples.jsonl", "samples")
    file.append(sample(0))
    whole = file.path.read_bytes()
    torn = b'{"schema":1,"cell":"c1","ind'
    file.path.write_bytes(whole + torn)
    again = RecordFile(file.path, "samples")
    assert len(again.read()) == 1, "reading ignores the torn line"
    assert file.path.read_bytes() == whole + torn, "and changes nothing"
    assert again.append(sample(1))
    assert Path(f"{file.path}.torn").read_bytes() == torn + b"\n"
    assert [r["index"] for r in RecordFile(file.path, "samples").read()] == [0, 1]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("not json", "not JSON"),
        ("[1,2]", "list instead of an object"),
        ('{"schema":1,"cell":"c1"}', "missing"),
        (json.dumps({**sample(0).__dict__, "schema": 99}), "schema 99"),
    ],
)
def test_corrupt_line_names_file_and_line(tmp_path: Path, line: str, says: str) -> None:
    file = RecordFile(tmp_path / "samples.jsonl", "samples")
    file.append(sample(0))
    before = file.path.read_bytes() + line.encode() + b"\n"
    file.path.write_bytes(before)
    for action in (lambda f: f.read(), lambda f: f.append(sample(5))):
        with pytest.raises(UserError, match=rf"samples\.jsonl:2: .*{says}.*[Mm]ove it aside"):
            action(RecordFile(file.path, "samples"))
    assert file.path.read_bytes() == before, "nothing overwritten"


def test_full_disk_is_an_error_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = RecordFile(tmp_path / "samples.jsonl", "samples")
    file.append(sample(0))
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, line: real(fd, line[:20]))
    with pytest.raises(UserError, match="the disk took only a part, is it full"):
        file.append(sample(1))
    monkeypatch.undo()
    assert file.append(sample(1)) and [r["index"] for r in file.read()] == [0, 1]


def test_concurrent_writers(tmp_path: Path) -> None:
    """Four processes append overlapping samples: every sample is there once, every line whole. They are forks of one that has
    imported what they need, each with its own file."""
    code = (
        "import os, sys; sys.path[:0] = [sys.argv[1], sys.argv[2]]\n"
        "from pathlib import Path\n"
        "from test_store import sample\n"
        "from harness.study.store import RecordFile\n"
        "for first in (0, 20, 20, 40):\n"
        "    if os.fork() == 0:\n"
        "        file = RecordFile(Path(sys.argv[3]), 'samples')\n"
        "        for i in range(first, first + 40): file.append(sample(i))\n"
        "        os._exit(0)\n"
        "print([os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(4)])\n"
    )
    here = Path(__file__).resolve()
    path = tmp_path / "samples.jsonl"
    command = [sys.executable, "-c", code, str(here.parents[3]), str(here.parent), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split("\n")[0] == "[0, 0, 0, 0]", done.stderr
    assert sorted(r["index"] for r in RecordFile(path, "samples").read()) == list(range(80))
    assert len(path.read_text().splitlines()) == 80


def test_store_sorts_samples_by_index(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for index in (2, 0, 1):
        store.samples.append(sample(index))
    assert [r["index"] for r in store.samples_of()["c1"]] == [0, 1, 2]


def test_a_batch_is_written_at_once_and_without_doubles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = RecordFile(tmp_path / "samples.jsonl", "samples")
    syncs = []
    monkeypatch.setattr(os, "fsync", syncs.append)
    assert file.append_all([sample(0), sample(1), sample(1), sample(2)]) == 3
    assert len(syncs) == 1
    assert file.append_all([sample(2), sample(3)]) == 1 and file.append_all([]) == 0
    assert [r["index"] for r in RecordFile(file.path, "samples").read()] == [0, 1, 2, 3] == [r["index"] for r in file.read()]
