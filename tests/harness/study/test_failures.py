"""When a failed cell is tried again: the policy by itself, on states as records hold them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from harness.study.failures import (
    ERROR,
    KINDS,
    Attempted,
    FailureKind,
    failures_of,
    is_left,
    is_of_launch,
    kind_of_state,
)
from harness.study.verdict import finished

RUNS: dict[str, Any] = {"a": {"device": "one", "launch": "x"}, "b": {"device": "other"}}
HERE = Attempted("y", "one")


def state(status: str = "failed", kind: str = "memory", run: str = "a", cell: str = "c", **more: Any) -> dict[str, Any]:
    return {"cell": cell, "status": status, "kind": kind, "run": run, **more}


def test_only_failures_since_another_verdict_count() -> None:
    states = [
        state(),
        state("ok"),
        state("running"),
        state(kind="error"),
        state("running"),
        state(cell="d"),
        state("ok", cell="e"),
    ]
    assert {cell: [s["kind"] for s in failed] for cell, failed in failures_of(states).items()} == {
        "c": ["error"],
        "d": ["memory"],
    }
    assert kind_of_state({"status": "failed"}) is kind_of_state({"kind": "of a newer version"}) is ERROR


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_kind_is_tried_as_often_as_it_says(kind: FailureKind) -> None:
    given = replace(HERE, minutes=5.0)
    for count in range(1, 5):
        failures = count * [state(kind=kind.name, summary={"cell_minutes": 5.0, "finished": 0})]
        assert is_left(failures, RUNS, given) == (kind.tries is not None and count >= kind.tries)
        assert not is_left(failures, RUNS, replace(given, retry=True))


def test_what_has_changed_is_tried_again() -> None:
    memory = 3 * [state()]
    assert is_left(memory, RUNS, HERE) and not is_left(memory, RUNS, replace(HERE, device="a larger one"))
    assert not is_left([*memory[:2], state(kind="error")], RUNS, HERE), "another kind of failure begins anew"
    slow = 3 * [state(kind="time_out", summary={"cell_minutes": 5.0, "finished": 0})]
    assert is_left(slow, RUNS, replace(HERE, minutes=5.0)) and is_left(slow, RUNS, replace(HERE, minutes=1.0))
    assert not is_left(slow, RUNS, replace(HERE, minutes=6.0)) and not is_left(slow, RUNS, HERE)
    slow[1] = state(kind="time_out", summary={"cell_minutes": 5.0, "finished": 2})
    assert not is_left(slow, RUNS, replace(HERE, minutes=5.0)), "it gets on"


def test_a_command_knows_what_failed_in_it() -> None:
    assert is_of_launch([state()], RUNS, "x") and not is_of_launch([state()], RUNS, "y")
    assert not is_of_launch([state(run="b")], RUNS, "") and not is_of_launch([state(run="gone")], RUNS, "x")


def test_a_cell_of_an_arm_that_could_not_be_built_goes_once_it_is() -> None:
    identity = {"method": "m", "sparsity": 0.5, "knobs": {"threshold": None, "last": 2}, "weights_hash": None}
    refused = state(kind="weights", identity=identity, summary={"lacks": "weights_hash"})
    unsearched = state(kind="memory", identity=identity, summary={"lacks": "threshold"}, cell="d")
    other = state("ok", identity=identity | {"sparsity": 0.7, "weights_hash": "h"}, cell="e")
    assert set(finished([refused, unsearched, other])) == {"c", "d", "e"}
    loaded = state("ok", identity=identity | {"weights_hash": "h"}, cell="f")
    assert set(finished([refused, unsearched, other, loaded])) == {"d", "e", "f"}
    knobs = {"threshold": 0.1, "last": 2}
    searched = state("gated", identity=identity | {"knobs": knobs}, cell="g")
    assert set(finished([refused, unsearched, other, searched])) == {"c", "e", "g"}
