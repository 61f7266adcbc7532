"""How long measurements take: seconds a unit (a sample, a document, a timing), from the dates of recorded ones.

All records of a process have the date at which they were written, to the second. What a unit took is the time since the record
before it. So a rate holds all that the process did for it, and leaves out what came before its first record: loading the model.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Any

from harness.core.errors import UserError
from harness.core.model_name import name_of_path
from harness.study.planned import CASES, DENSITIES, DOCUMENTS, MASSES, OF_CELLS, SAMPLES, TIMINGS, Planned
from harness.study.schema import Status
from harness.study.store import Record, Store

Key = tuple[Any, ...]
"""What units have in common: their kind, model and length, then as far as it is as long the method, the sparsity, the task."""
HALF_SECOND = 0.5
"""What units took, in the mean, that were begun and recorded in the same second of the clock."""
STEPS = (6, 5, 4, 3)
"""How many parts of a key count, tried in this order: a unit of the same task and arm tells most."""


@dataclass
class Measured:
    """Units of a key that were measured: how many, in how many seconds, and how many each study has of them."""

    count: int = 0
    seconds: float = 0.0
    studies: dict[str, int] = field(default_factory=lambda: defaultdict(int))


@dataclass
class Rates:
    """Seconds a unit on one device, by key. device: its name; None: whichever."""

    device: str | None
    by_key: dict[Key, Measured] = field(default_factory=lambda: defaultdict(Measured))

    def add(self, store: Store, *, by_sample: bool) -> None:
        """Take what a study has recorded on the device. by_sample: read its samples too, which tells tasks apart, and what was
        interrupted; else cells as a whole."""
        for key, count, seconds in _timed(store, self.device, by_sample=by_sample):
            self.add_units(key, count, seconds, store.folder.name)

    def add_units(self, key: Key, count: int, seconds: float, study: str) -> None:
        """Take units that took so many seconds together."""
        for step in STEPS:
            measured = self.by_key[key[:step]]
            measured.count += count
            measured.seconds += seconds
            measured.studies[study] += count

    def nearest(self, planned: Planned) -> Key | None:
        """Return the longest key of what is planned that was measured."""
        key = key_of(planned.kind, planned.model, planned.arm, planned.task)
        return next((key[:step] for step in STEPS if key[:step] in self.by_key), None)

    def studies(self, keys: Set[Key]) -> dict[str, int]:
        """Return how many units of each study these keys are of, each unit once."""
        counts: dict[str, int] = defaultdict(int)
        for key, measured in self.by_key.items():
            if len(key) == STEPS[0] and any(key[:step] in keys for step in STEPS):
                for study, count in measured.studies.items():
                    counts[study] += count
        return dict(counts)

    def knows(self, planned: Planned) -> bool:
        """Return whether there are units of its method at its length."""
        return key_of(planned.kind, planned.model, planned.arm, planned.task)[:4] in self.by_key


@dataclass(frozen=True)
class Estimate:
    """How long what is left takes in one process. seconds: of what a rate is known of; unknown: the rest; studies: on how many
    units of which study that rests."""

    seconds: float
    unknown: list[Planned]
    studies: dict[str, int]


def estimate(left: Iterable[tuple[Planned, int]], rates: Rates) -> Estimate:
    """Return how long units take that are left of what is planned, as many as stand beside each."""
    seconds, unknown, used = 0.0, [], set[Key]()
    for planned, count in left:
        key = rates.nearest(planned) if count else None
        if key is not None:
            seconds += count * rates.by_key[key].seconds / rates.by_key[key].count
            used.add(key)
        elif count:
            unknown.append(planned)
    return Estimate(seconds, unknown, rates.studies(used))


def rates_for(left: Sequence[Planned], store: Store, others: Iterable[Store], device: str | None, *, by_sample: bool) -> Rates:
    """Return the rates of a study; where it does not know all methods and lengths that are left, those of `others` too, whose
    records are on the same device. What can't be read is left out: it is an estimate."""
    rates = Rates(device)
    with suppress(UserError, OSError):
        rates.add(store, by_sample=by_sample)
    for other in others:
        if device is None or all(map(rates.knows, left)):
            break
        if other.folder != store.folder:
            with suppress(UserError, OSError):
                rates.add(other, by_sample=False)
    return rates


def key_of(kind: str, model: str, arm: Mapping[str, Any], task: str) -> Key:
    """Return the key of a unit. arm: its identity, or as much of it as is known."""
    sparsity = arm.get("sparsity")
    return kind, _model(model), arm["length"], arm["method"], None if sparsity is None else round(sparsity, 6), task


def _model(name: str) -> str:
    """Return a model's name without what tells its weights from others of the same name."""
    return name_of_path(name.partition("@")[0])


def _timed(store: Store, device: str | None, *, by_sample: bool) -> Iterator[tuple[Key, int, float]]:
    """Yield the key of units that were recorded at one time, how many, and the seconds since the record before."""
    runs = {record["run"]: record["device"] for record in store.runs.read()}
    ours = {run for run, name in runs.items() if device in (None, name)}
    if not ours:
        return
    for events in _events(store, ours, by_sample=by_sample).values():
        before: int | None = None
        for date in sorted(events):
            units = events[date]
            total = sum(units.values())
            for key, count in units.items():
                if before is not None:
                    yield key, count, (date - before) * count / total
                elif key[0] in OF_CELLS:  # whose cell began in the same second
                    yield key, count, HALF_SECOND * count / total
            before = date


def _events(store: Store, runs: set[str], *, by_sample: bool) -> dict[str, dict[int, dict[Key, int]]]:
    """Return by process and second which units were recorded, and how many of each key; none where anything else was."""
    events: dict[str, dict[int, dict[Key, int]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(int)))
    cells = store.cells.read()
    identities = {record["cell"]: record["identity"] for record in cells}
    began: dict[str, set[str]] = defaultdict(set)
    for record in cells:
        if record["status"] == Status.RUNNING:
            began[record["cell"]].add(record["run"])
        if record["run"] in runs:
            units = events[record["run"]][_second(record["date"])]
            if not by_sample and record["status"] in (Status.OK, Status.GATED) and began[record["cell"]] == {record["run"]}:
                units[_key(SAMPLES, record["identity"])] += record.get("summary", {}).get("samples", 0)
    of_cells = {DOCUMENTS: store.perplexity} | ({SAMPLES: store.samples} if by_sample else {})
    for kind, file in of_cells.items():
        for record in file.read():
            if record["run"] in runs and record["cell"] in identities:
                events[record["run"]][_second(record["date"])][_key(kind, identities[record["cell"]])] += 1
    for kind, file in ((TIMINGS, store.latency), (MASSES, store.mass), (DENSITIES, store.arm_densities)):
        for record in file.read():
            if record["run"] in runs:
                events[record["run"]][_second(record["date"])][_key(kind, record["identity"])] += 1
    for record in store.kernels.read():
        if record["run"] in runs:
            identity = record["identity"]
            key = key_of(CASES, identity["shape"], identity, identity["op"])
            events[record["run"]][_second(record["date"])][key] += 1
    for file in (store.checks, store.calibrations):
        for record in file.read():
            if record["run"] in runs:
                events[record["run"]].setdefault(_second(record["date"]), defaultdict(int))  # no unit, but it took time
    return events


def _key(kind: str, identity: Record) -> Key:
    task = identity.get("task", "") if kind in (SAMPLES, DOCUMENTS) else ""
    return key_of(kind, identity["model"], identity, task)


@lru_cache(maxsize=4096)
def _second(date: str) -> int:
    """Return a date in seconds, as records have it."""
    return int(datetime.fromisoformat(date).timestamp())
