"""How far a study is, from its records and from what the processes that work on it tell of themselves."""

from __future__ import annotations

import math
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from harness.study.columns import PERPLEXITY
from harness.study.failures import Attempted, failures_of, is_left
from harness.study.full_rows import arm_name
from harness.study.planned import (
    CASES,
    DENSITIES,
    DOCUMENTS,
    MASSES,
    OF_CELLS,
    SAMPLES,
    TIMINGS,
    Planned,
    merged,
    with_recorded,
)
from harness.study.rates import Estimate, estimate, key_of, rates_for
from harness.study.resume import is_settled
from harness.study.running import SECONDS, State, states_in
from harness.study.schema import Status
from harness.study.store import Record, Store

RETRIES = "retry_failed=true"
"""What a command says that tries everything again."""


class Stage(StrEnum):
    """How far a cell, or another measurement, is. STOPPED: begun, and nobody works on it now."""

    DONE = "done"
    RUNNING = "running"
    FAILED = "failed"
    STOPPED = "stopped"
    TO_COME = "to come"


@dataclass(frozen=True)
class Item:
    """A cell, or another measurement, of a study. done: its units; cell: its last recorded state, where it has one."""

    planned: Planned
    stage: Stage
    done: int
    cell: Record | None = None

    @property
    def arm(self) -> str:
        """Return what its arm is called in a line: its method with its knobs, and the sparsity."""
        identity: Mapping[str, Any] = self.planned.arm if self.cell is None else self.cell["identity"]
        name = self.planned.method if self.cell is None else arm_name(identity)
        sparsity = identity.get("sparsity")
        return f"{name} {sparsity:g}" if sparsity else name

    def label(self, task: str = "") -> str:
        """Return what it is called in a line: its arm, the length of its prompts and the task, its own where none is named."""
        return ", ".join(filter(None, (self.arm, f"{self.planned.length:,}", task or self.planned.task)))


@dataclass(frozen=True)
class _Hands:
    """Samples that processes have done of the cells they work on, by cell: those that are alive, and all. since: from when on
    a cell may be in hands that have not said so yet, in seconds of time.time."""

    alive: Mapping[str, int]
    all: Mapping[str, int]
    since: float = math.inf

    def hold(self, cell: Record) -> bool:
        """Return whether a process works on a cell, as far as is known."""
        just_begun = cell["status"] == Status.RUNNING and datetime.fromisoformat(cell["date"]).timestamp() >= self.since
        return cell["cell"] in self.alive or just_begun


@dataclass(frozen=True)
class StudyStatus:
    """How far a study is. items: of the commands that work on it, or worked until they died; without one, its cells.
    processes: those commands and their workers, alive or dead; expected: how long what is left takes in one process, None where
    nobody works on it; workers: the processes that share it."""

    store: Store
    items: Sequence[Item]
    processes: Sequence[State]
    expected: Estimate | None
    workers: int

    @property
    def alive(self) -> list[State]:
        """Return the processes that run."""
        return [state for state in self.processes if state.is_alive]

    def count(self, stage: Stage) -> int:
        """Return how many items are at a stage."""
        return sum(item.stage == stage for item in self.items)


def status_of(store: Store, others: Iterable[Store] = ()) -> StudyStatus:
    """Return how far a study is. others: studies whose rates count where its own tell nothing. Raises RecordError for corrupt
    records."""
    processes = states_in(store.folder)
    alive = [state for state in processes if state.is_alive]
    # what was planned by a command that died counts where no other has taken its place
    planning = alive if any(state.plan for state in alive) else processes
    plan = merged(planned for state in planning for planned in state.planned)
    began = min((state.began for state in planning if state.plan), default=0.0)
    cells = store.latest_cells()
    held, ever = ({cell: done for state in of for cell, (done, _) in state.doing.cells.items()} for of in (alive, processes))
    hands = _Hands(held, ever, time.time() - 2 * SECONDS if alive else math.inf)
    left = _not_tried_again(store, planning)
    items = _of_plan(plan, store, cells, hands, began, left) if plan else _of_records(store, cells, hands)
    workers = sum(not state.workers for state in alive) or max((state.workers for state in alive), default=0)
    return StudyStatus(store, items, processes, _expected(items, store, others, alive) if alive else None, workers)


def _not_tried_again(store: Store, planning: Sequence[State]) -> set[str]:
    """Return the cells, by id, that failed in a way which none of these commands tries again (`harness.study.failures`). What
    minutes a cell has they don't say: a time-out counts as tried."""
    failures = failures_of(store.cells.read())
    if not failures or not planning:
        return set()
    runs = {run["run"]: run for run in store.runs.read()}
    tries = [Attempted("", state.device, retry=RETRIES in state.command.split()) for state in planning if state.plan]
    return {cell for cell, states in failures.items() if all(is_left(states, runs, attempted) for attempted in tries)}


def _of_plan(
    plan: Sequence[Planned], store: Store, cells: Mapping[str, Record], hands: _Hands, began: float, left: Set[str]
) -> list[Item]:
    """Return how far each part of a plan is. What failed before the command began is tried again, but for the cells `left`."""
    near: dict[tuple[Any, ...], list[Record]] = defaultdict(list)
    for cell in cells.values():
        identity = cell["identity"]
        near[identity["length"], identity["method"], identity["task"]].append(cell)
    cases = {_case_key(c["identity"]): c for c in store.kernels.read()}
    others = [planned for planned in plan if planned.kind not in (*OF_CELLS, CASES)]
    timed = {planned.key: planned for planned in with_recorded(others, store, None)} if others else {}
    items = []
    for planned in plan:
        if planned.kind == CASES:
            items.append(_planned_case(planned, cases.get(_case_key(planned.arm)), began))
            continue
        if planned.kind not in OF_CELLS:
            recorded = max(planned.recorded, timed[planned.key].recorded)
            items.append(Item(planned, Stage.TO_COME if recorded < planned.count else Stage.DONE, recorded))
            continue
        fitting = [c for c in near[planned.length, planned.method, planned.task] if planned.fits(c["identity"])]
        latest = max(fitting, key=lambda c: (c["cell"] in hands.alive, c["date"])) if fitting else None
        items.append(_planned_cell(planned, latest, hands, began, left))
    return items


def _planned_cell(planned: Planned, cell: Record | None, hands: _Hands, began: float, left: Set[str]) -> Item:
    if cell is None:
        return Item(planned, Stage.TO_COME, 0)
    done = min(planned.count, planned.recorded + hands.all.get(cell["cell"], 0))
    if hands.hold(cell):
        return Item(planned, Stage.RUNNING, done, cell)
    if cell["status"] == Status.RUNNING:
        return Item(planned, Stage.STOPPED, done, cell)
    if cell["status"] == Status.FAILED:
        again = datetime.fromisoformat(cell["date"]).timestamp() < int(began) and cell["cell"] not in left
        return Item(planned, Stage.TO_COME if again else Stage.FAILED, done, cell)
    samples = cell.get("summary", {}).get("samples", planned.count)
    short = samples < planned.count and planned.kind == SAMPLES
    return Item(planned, Stage.TO_COME if short else Stage.DONE, min(planned.count, samples), cell)


def _planned_case(planned: Planned, case: Record | None, began: float) -> Item:
    """Return how far a case of kernels is. One that was timed before the command began counts if that said so: it may have been
    on another device, or by another version."""
    if planned.recorded or case is None or datetime.fromisoformat(case["date"]).timestamp() < int(began):
        return Item(planned, Stage.DONE if planned.recorded else Stage.TO_COME, planned.recorded)
    return Item(planned, Stage.DONE, 1) if is_settled(case) else Item(planned, Stage.FAILED, 0)


def _case_key(identity: Mapping[str, Any]) -> tuple[Any, ...]:
    fields = ("op", "length", "batch", "kernel", "method", "block", "sparsity", "index", "selection")
    return (*(identity[name] for name in fields), identity.get("last", 0))


def _of_records(store: Store, cells: Mapping[str, Record], hands: _Hands) -> list[Item]:
    """Return how far what is recorded is, where nobody says what was planned."""
    documents = Counter(record["cell"] for record in store.perplexity.read())
    items = [_of_cell(cell, hands, documents) for cell in cells.values()]
    for kind, file in ((TIMINGS, store.latency), (MASSES, store.mass), (DENSITIES, store.arm_densities)):
        items += [Item(Planned(kind, r["identity"]["model"], r["identity"]), Stage.DONE, 1) for r in file.read()]
    for case in {record["case"]: record for record in store.kernels.read()}.values():
        stage = Stage.DONE if is_settled(case) else Stage.FAILED
        items.append(Item(Planned(CASES, case["identity"]["shape"], case["identity"]), stage, int(stage == Stage.DONE)))
    return items


def _of_cell(cell: Record, hands: _Hands, documents: Mapping[str, int]) -> Item:
    identity, samples = cell["identity"], cell.get("summary", {}).get("samples", documents.get(cell["cell"], 0))
    kind = DOCUMENTS if identity["task"] == PERPLEXITY else SAMPLES
    planned = Planned(kind, identity["model"], identity, task=identity["task"], count=samples)
    stages = {Status.RUNNING: Stage.STOPPED, Status.FAILED: Stage.FAILED}
    if hands.hold(cell):
        return Item(planned, Stage.RUNNING, samples, cell)
    return Item(planned, stages.get(cell["status"], Stage.DONE), samples, cell)


def _expected(items: Sequence[Item], store: Store, others: Iterable[Store], alive: Sequence[State]) -> Estimate:
    """Return how long what is left takes, at the pace of this study, and of what is in hand just now."""
    left = [(item.planned, item.planned.count - item.done) for item in items if item.stage not in (Stage.DONE, Stage.FAILED)]
    runs = store.runs.read()
    device = next((state.device for state in alive if state.device), runs[-1]["device"] if runs else None)
    rates = rates_for([planned for planned, count in left if count], store, others, device, by_sample=False)
    by_cell = {item.cell["cell"]: item for item in items if item.cell is not None}
    for state in alive:
        counts = {cell: done for cell, (done, _) in state.doing.cells.items() if cell in by_cell and done}
        for cell, done in counts.items():
            planned, identity = by_cell[cell].planned, by_cell[cell].cell["identity"]  # type: ignore[index]
            share = (state.doing.moved - state.doing.since) * done / sum(counts.values())
            rates.add_units(key_of(planned.kind, identity["model"], identity, planned.task), done, share, store.folder.name)
    return estimate(left, rates)


def units_of(items: Iterable[Item]) -> tuple[Counter[str], Counter[str]]:
    """Return how many units of each kind are done, and how many there are."""
    done, count = Counter[str](), Counter[str]()
    for item in items:
        done[item.planned.kind] += item.done
        count[item.planned.kind] += item.planned.count
    return done, count


def tail(path: str, lines: int) -> list[str]:
    """Return the last lines of a file that are not blank; none where it can't be read."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - 8192))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return [line.rstrip() for line in text.splitlines() if line.strip()][-lines:] if lines else []


def silent_for(state: State) -> float:
    """Return how many seconds ago a process last wrote its state."""
    return max(0.0, time.time() - state.wrote)
