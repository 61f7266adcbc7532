"""Records taken out of a study and brought back byte for byte: archived ones too, whenever the process dies."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from harness.core.errors import UserError
from harness.study import record_io
from harness.study.integrity import check_study
from harness.study.pruning import (
    Removed,
    bring_back,
    finish,
    forget,
    is_back,
    keep_derived,
    take_out,
    taken_out,
    undo_command,
    unfinished,
)
from harness.study.record_io import RecordError, opened_locked
from harness.study.schema import SampleRecord
from harness.study.selection import Selector, select
from harness.study.store import Store
from tests.harness.report.support import DATE, DENSE, SPARSE, cell_of, record_cell
from tests.harness.study.dying import Killed, dying
from tests.harness.study.whole_study import record_models

OTHER = replace(SPARSE, sparsity=0.5)
CELLS = Removed(frozenset(cell_of(arm, "vt").id for arm in (SPARSE, OTHER)))
"""A cell that is archived, and one that is not."""
GONE = [Selector("method=sieve", lambda record: record["identity"]["method"] == "sieve")]
ORDER: dict[str, Callable[[Store], None]] = {
    "as recorded": lambda store: None,
    "archived": lambda store: _archive(store),
    "archived, without empty files": lambda store: _archive(store, alone=True),
    "archived, and more": lambda store: _archive(store, more=True),
    "unfinished last line": lambda store: _tear(store),
}


def _archive(store: Store, *, alone: bool = False, more: bool = False) -> None:
    """Archive every kind; alone: without the empty files that this leaves; more: and record another arm's samples."""
    for file in store.files():
        file.archive()
        if alone and file.path.exists():
            file.path.unlink()
    if more:
        record_cell(store, OTHER, "vt", [1.0, 0.0], density=0.5)
        record_cell(store, replace(SPARSE, sparsity=0.7), "vt", [1.0], density=0.3)


def _tear(store: Store) -> None:
    with store.samples.path.open("ab") as file:
        file.write(b'{"cell": "half')


@pytest.fixture(autouse=True)
def unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """No file is waited for until it is on the disk."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a study of dense attention and a method, with records of every kind."""
    folder = tmp_path_factory.mktemp("recorded") / "study"
    record_models(folder)
    return folder


@pytest.fixture
def store(recorded: Path, tmp_path: Path) -> Store:
    """A copy of the study."""
    shutil.copytree(recorded, tmp_path / "study")
    return Store(tmp_path / "study")


def contents(store: Store) -> dict[str, bytes]:
    """What lies in the folder of a study, but for what a killed process was writing or claimed, and what was brought back."""
    passing = re.compile(r"\.(partial|back|claim)(/|$)")
    paths = [path for path in store.folder.rglob("*") if path.is_file() and not passing.search(str(path))]
    return {str(path.relative_to(store.folder)): path.read_bytes() for path in paths}


def sieve_out(store: Store) -> int:
    """Take the method out."""
    return take_out(store, select(Store(store.folder), GONE).removed, "method=sieve")


@pytest.mark.parametrize("kind", ORDER)
def test_what_is_taken_out_comes_back_byte_for_byte(store: Store, kind: str) -> None:
    ORDER[kind](store)
    before = contents(store)
    assert sieve_out(store) == 1
    left = Store(store.folder)
    check_study(left)
    for file in left.files():
        texts = [str(record) for record in file.read()]
        assert not [text for text in texts if SPARSE.id in text or cell_of(SPARSE, "vt").id in text], file.kind
    assert left.cells.read() and left.samples.read() and left.gate_steps.read() and not left.calibrations.read()
    bring_back(Store(store.folder), 1)
    assert is_back(store, 1) and not taken_out(store)
    forget(store, 1)
    assert contents(store) == before and not (store.folder / "records" / "pruned").exists()


@pytest.mark.parametrize("kind", ["as recorded", "archived"])
def test_what_is_recorded_since_stays(store: Store, kind: str) -> None:
    ORDER[kind](store)
    before = contents(store)
    sieve_out(store)
    record_cell(store, OTHER, "vt", [1.0, 0.0], density=0.5)
    bring_back(store, 1)
    samples = "records/samples.jsonl"
    assert contents(store)[samples].startswith(before[samples]) and contents(store)[samples] != before[samples]
    assert {cell_of(arm, "vt").id for arm in (SPARSE, OTHER)} <= {record["cell"] for record in store.samples.read()}
    check_study(store)


def test_records_that_are_archived_in_between_come_back(store: Store) -> None:
    before = [file.read() for file in store.files()]
    sieve_out(store)
    record_cell(store, OTHER, "vt", [1.0], density=0.5)
    for file in store.files():
        file.archive()
    bring_back(store, 1)
    after = [file.read() for file in Store(store.folder).files()]
    assert all(records == now[: len(records)] for records, now in zip(before, after, strict=True))
    assert sum(map(len, after)) == sum(map(len, before)) + 2


def test_the_same_measured_again_and_other_changes_are_refused(store: Store) -> None:
    sieve_out(store)
    out = contents(store)
    record_cell(store, SPARSE, "vt", [0.0, 0.0], density=0.2)
    again = contents(store)
    with pytest.raises(UserError, match=r"samples\.jsonl: what was taken out was measured again since"):
        bring_back(store, 1)
    assert contents(store) == again
    store.samples.path.write_bytes(out["records/samples.jsonl"][: len(out["records/samples.jsonl"]) // 2])
    with pytest.raises(UserError, match=r"samples\.jsonl: changed since by more than adding to it"):
        bring_back(store, 1)


def test_the_last_one_taken_out_comes_back_first(store: Store) -> None:
    record_cell(store, OTHER, "vt", [1.0, 0.0], density=0.5)
    before = contents(store)
    for arm in (SPARSE, OTHER):
        chosen = [Selector("arm", lambda record, arm=arm: record.get("arm") == arm.id)]  # type: ignore[misc]
        take_out(store, select(store, chosen).removed, f"sparsity={arm.sparsity}")
    with pytest.raises(UserError, match=r"undo=1: the last one comes back first: python -m harness job=prune .*undo=2"):
        bring_back(store, 1)
    with pytest.raises(UserError, match=r"undo=3: there is no such number; 1 is sparsity=0\.9; 2 is sparsity=0\.5"):
        bring_back(store, 3)
    bring_back(store, 2)
    bring_back(store, 1)
    assert contents(store) == before
    with pytest.raises(UserError, match="undo=1: there is no such number; nothing is out of this study"):
        bring_back(store, 1)


def test_a_process_that_dies_taking_out_loses_nothing(store: Store) -> None:
    ORDER["archived, and more"](store)
    before, halfway = contents(store), 0
    for step in range(1, 200):
        with dying(step) as steps, suppress(Killed):
            take_out(Store(store.folder), CELLS, "two cells")
        known, problem = taken_out(store), unfinished(store)
        if problem:
            halfway += 1
            with pytest.raises(
                RecordError, match="nothing is lost, the same command goes on, and this brings them back: python"
            ):
                check_study(Store(store.folder))
            with pytest.raises(RecordError):
                take_out(Store(store.folder), CELLS, "two cells")
            assert finish(Store(store.folder), "another cell") is None
            if halfway % 2:
                assert finish(Store(store.folder), "two cells") == 1 and not unfinished(store)
                assert len(Store(store.folder).samples.read()) == len(store.samples.read()) == 3
        if known:
            bring_back(Store(store.folder), 1)
        assert contents(store) == before, step
        shutil.rmtree(store.folder / "records" / "pruned", ignore_errors=True)  # what the dead process was writing
        if steps[0] < step:
            break
    assert halfway > 4 and steps[0] < step


def test_a_process_that_dies_bringing_back_loses_nothing(store: Store, tmp_path: Path) -> None:
    ORDER["archived, and more"](store)
    before = contents(store)
    take_out(store, CELLS, "two cells")
    picture = store.folder / "compare_sieve.png"
    picture.write_bytes(b"picture")
    keep_derived(store, 1, [picture])
    shutil.copytree(store.folder, tmp_path / "pruned")
    for step in range(1, 200):
        with dying(step) as steps, suppress(Killed):
            bring_back(Store(store.folder), 1)
        if taken_out(store):
            bring_back(Store(store.folder), 1)
        assert contents(store) == before | {"compare_sieve.png": b"picture"}, step
        if steps[0] < step:
            break
        shutil.rmtree(store.folder)
        shutil.copytree(tmp_path / "pruned", store.folder)
    assert steps[0] < step


def test_a_file_that_cannot_be_written_says_how_to_go_on(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    before, replace_path = contents(store), Path.replace

    def full(self: Path, target: Path) -> Path:
        if "cells.jsonl" in str(target):
            raise OSError(28, "No space left on device")
        return replace_path(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(UserError, match=r"cells\.jsonl can't be written .*No space left.*this brings them back: .* undo=1"):
            sieve_out(store)
    bring_back(store, 1)
    assert contents(store) == before


def test_readers_and_writers_that_knew_the_file_see_the_new_one(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Store(store.folder)
    known = other.samples.read()
    sieve_out(store)
    assert len(other.samples.read()) == len(known) - 2
    sample = SampleRecord("c", "r1", 0, "p", ["a"], 1.0, 9, 0.1, 0.1, ["k"], "ok", "", DATE)
    assert other.samples.append(sample) and store.samples.read()[-1]["cell"] == "c"
    path, lock = store.samples.path, record_io.fcntl.flock
    swapped = path.with_suffix(".new")
    swapped.write_bytes(path.read_bytes())

    def swap(fd: int, how: int) -> None:
        lock(fd, how)
        if swapped.exists():
            swapped.replace(path)

    monkeypatch.setattr(record_io.fcntl, "flock", swap)
    assert store.samples.append(replace(sample, index=1)), "another file took its place while the lock was waited for"
    assert [record["index"] for record in Store(store.folder).samples.read() if record["cell"] == "c"] == [0, 1]
    with opened_locked(path, 0, record_io.fcntl.LOCK_SH):
        pass


def test_the_command_names_a_folder_of_results_that_is_not_the_usual_one(tmp_path: Path) -> None:
    assert undo_command(Store(Path("results/mine")), 2) == "python -m harness job=prune study=mine undo=2"
    folder = tmp_path / "a b" / "mine"
    assert undo_command(Store(folder), 2) == f"python -m harness job=prune 'results={folder.parent}' study=mine undo=2"


def test_dense_attention_is_an_arm_too(store: Store) -> None:
    dense = [Selector("dense", lambda record: record["identity"]["kernel"] is None)]
    removed = select(store, dense).removed
    assert removed.arms == {replace(DENSE, sparsity=None).id} and not removed.calibrations
