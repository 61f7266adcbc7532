"""What can go wrong with a cell, and when it is tried again: the one place that says so.

1. The command that a cell failed in goes on with the other cells and does not try it again, nor does any of its workers.
2. The same command, run again, tries it again, unless its kind is certain to repeat (`FailureKind.tries` is 1), or has
   failed as often as its kind says without anything that changed: full memory and errors of a device on the same type of
   device, a time-out with as many minutes and no sample finished. `retry_failed=true` tries everything again.
3. Samples that were finished stay, whatever happened to the others of their cell.
4. As long as a cell that a command asks for has failed, the command ends with exit code 1, and its table names the cell.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from harness.study.schema import Status
from harness.study.store import Record

MINUTES, FINISHED = "cell_minutes", "finished"
"""Entries in the summary of a cell that was not finished in time: the minutes that it had, and the samples finished in them."""


@dataclass(frozen=True)
class FailureKind:
    """A kind of failure. name: as records have it; title: as tables have it; tries: how many commands try a cell that fails
    this way, None for every one; advice: what to do, or to change, before the next."""

    name: str
    title: str
    tries: int | None
    advice: str


MEMORY = FailureKind("memory", "out of memory", 3, "free memory, or take a smaller length=, prefill.chunk=, a larger device")
DEVICE = FailureKind("device", "device error", 3, "read its traceback; run the command again for what is left")
TIME_OUT = FailureKind("time_out", "time-out", 3, "give more minutes (cell_minutes=); what is finished stays")
NOT_FINITE = FailureKind("not_finite", "NaN or infinite", 1, "take another dtype= or kernel=, or mend the method")
WEIGHTS = FailureKind("weights", "weights refused", 1, "name others (model.gates=), or make them again")
INPUT = FailureKind("input", "can't be made", None, "see the reason of each: length=, data or a setting")
ERROR = FailureKind("error", "error", None, "read its traceback in the records (debug=true shows it)")
KINDS = {kind.name: kind for kind in (MEMORY, DEVICE, TIME_OUT, NOT_FINITE, WEIGHTS, INPUT, ERROR)}


@dataclass(frozen=True)
class Attempted:
    """Who would try a failed cell again. launch: the id of the command; device: its name; minutes: those that a cell has, None
    for all; retry: whether everything is to be tried again."""

    launch: str
    device: str
    minutes: float | None = None
    retry: bool = False


def kind_of_state(state: Mapping[str, object]) -> FailureKind:
    """Return the kind of a recorded failure; records older than kinds are of none in particular."""
    return KINDS.get(str(state.get("kind", "")), ERROR)


def failures_of(states: Iterable[Record]) -> dict[str, list[Record]]:
    """Return the failures of each cell whose last verdict is one, since it last had another; the oldest first."""
    failures: dict[str, list[Record]] = {}
    for state in states:
        if state["status"] == Status.FAILED:
            failures.setdefault(state["cell"], []).append(state)
        elif state["status"] != Status.RUNNING:
            failures.pop(state["cell"], None)
    return failures


def is_of_launch(failures: Sequence[Record], runs: Mapping[str, Record], launch: str) -> bool:
    """Return whether a cell failed last in this very command, or in another worker of it. runs: records by id."""
    run = runs.get(failures[-1]["run"])
    return run is not None and run.get("launch", "") == launch != ""


def is_left(failures: Sequence[Record], runs: Mapping[str, Record], attempted: Attempted) -> bool:
    """Return whether a cell with these failures is not tried again. runs: records by id."""
    kind = kind_of_state(failures[-1])
    if attempted.retry or kind.tries is None:
        return False
    return sum(_counts(state, kind, runs, attempted) for state in failures) >= kind.tries


def _counts(state: Record, kind: FailureKind, runs: Mapping[str, Record], attempted: Attempted) -> bool:
    """Return whether a failure says that the next try would fail too."""
    if kind_of_state(state) != kind:
        return False
    if kind in (MEMORY, DEVICE):
        return bool(runs.get(state["run"], {}).get("device") == attempted.device)
    if kind == TIME_OUT:
        had = state.get("summary", {})
        return attempted.minutes is not None and had.get(MINUTES, 0) >= attempted.minutes and not had.get(FINISHED)
    return True
