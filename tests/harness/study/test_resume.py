"""The protocol of resuming: what counts as recorded, what becomes of an error, what passes."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.core.errors import UserError
from harness.study.resume import LONGEST_REASON, Attempt, is_settled, missing_indices, one_line, recorded
from harness.study.schema import MassRecord
from harness.study.store import RecordError, Store
from tests.harness.report.support import SPARSE


def mass(key: str) -> MassRecord:
    return MassRecord(key, "arm", "run", SPARSE.as_dict(), {}, 1, 9.0, [0], [[1.0]], [1.0], "2026-01-01T00:00:00+00:00")


def test_an_error_is_held_and_what_ends_a_command_passes() -> None:
    with Attempt() as attempt:
        pass
    assert attempt.error is None and attempt.reason == ""
    with Attempt() as attempt:
        raise RuntimeError("CUDA out of memory\nmore lines")
    assert isinstance(attempt.error, RuntimeError) and attempt.reason == "RuntimeError: CUDA out of memory"
    for error in (RecordError("the disk is full"), KeyboardInterrupt()):
        with pytest.raises(type(error)), Attempt() as attempt:
            raise error
        assert attempt.error is None


def test_a_record_is_found_by_its_key_whoever_wrote_it(tmp_path: Path) -> None:
    store, other = Store(tmp_path), Store(tmp_path)
    assert recorded(store.mass, "a") is None
    assert other.mass.append(mass("a")) and other.mass.append(mass("b"))
    record = recorded(store.mass, "a")
    assert record is not None and record["mass"] == "a"
    assert recorded(store.mass, "c") is None


@pytest.mark.parametrize(
    ("state", "settled"),
    [
        (None, False),
        ({"status": "running"}, False),
        ({"status": "failed"}, False),
        ({"status": "failed", "final": False}, False),
        ({"status": "failed", "final": True}, True),
        ({"status": "ok"}, True),
        ({"status": "gated"}, True),
    ],
)
def test_which_states_need_no_other_run(state: dict[str, object] | None, settled: bool) -> None:
    assert is_settled(state) == settled


def test_missing_indices() -> None:
    assert missing_indices(set(), 3) == [0, 1, 2]
    assert missing_indices(set(range(20)), 50) == list(range(20, 50))
    assert missing_indices({0, 2, 9}, 4) == [1, 3]


def test_an_error_in_one_line() -> None:
    assert one_line(UserError("\n length=0: too short \nmore")) == "length=0: too short"
    assert one_line(ValueError()) == "ValueError: "
    assert len(one_line(RuntimeError("x" * 999))) == LONGEST_REASON + 1
