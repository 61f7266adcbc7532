"""What a command is to measure, known from its settings alone, and how much of that is recorded.

The ids of cells need the model and its weights (`harness.study.identity`). What is planned is compared with what is recorded by
all that both say instead. So a plan takes for recorded what another state of the same model, gates or data has measured.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from harness.core.knob_names import RELEASED, asked_value
from harness.core.model_name import name_of_path
from harness.core.question import QUESTION_SEEN
from harness.core.sizing import FULL
from harness.study.provenance import commit
from harness.study.store import Record, Store

SAMPLES, DOCUMENTS, TIMINGS, MASSES, DENSITIES = "samples", "perplexity", "latency", "mass", "arm_densities"
"""Kinds of what is planned of arms, as the records of their units are called."""
CASES = "kernels"
"""The kind of the cases of a study of kernels."""
OF_CELLS = (SAMPLES, DOCUMENTS)
"""Kinds whose units belong to a cell."""
UNITS = {
    SAMPLES: ("sample", "samples"),
    DOCUMENTS: ("document", "documents"),
    TIMINGS: ("timing", "timings"),
    MASSES: ("measurement of kept mass", "measurements of kept mass"),
    DENSITIES: ("measurement of density", "measurements of density"),
    CASES: ("case", "cases"),
}
"""What the units of a kind are called, one and several."""
USUAL = {"question": QUESTION_SEEN, "sizing": FULL}
"""What stands for a field that an identity has no entry of."""


@dataclass(frozen=True)
class Planned:
    """A cell, or another measurement, that a command is to make. arm: fields of its identity as far as the settings tell them,
    and knobs those of its method; decode: the method of decoding, None for full attention, with decode_knobs; released: whether
    one of both runs as its authors released it; task: of a cell, "" of anything else; count: how many units, of which
    `recorded` were there when the command began."""

    kind: str
    model: str
    arm: dict[str, Any]
    knobs: dict[str, Any] = field(default_factory=dict)
    decode: str | None = None
    decode_knobs: dict[str, Any] = field(default_factory=dict)
    released: bool = False
    task: str = ""
    count: int = 1
    recorded: int = 0

    @property
    def length(self) -> int:
        """Return the tokens of its prompts."""
        return int(self.arm["length"])

    @property
    def method(self) -> str:
        """Return its method."""
        return str(self.arm["method"])

    @property
    def left(self) -> int:
        """Return how many units were not recorded."""
        return max(0, self.count - self.recorded)

    @property
    def key(self) -> str:
        """Return what is equal for two that are the same measurement, of however many units."""
        return repr(replace(self, count=1, recorded=0))

    def fits(self, identity: Mapping[str, Any]) -> bool:
        """Return whether a recorded identity is of this measurement, by all that the settings say of it."""
        decode = identity.get("decode") or {"method": None, "knobs": {}}
        return (
            identity.get("task", "") == self.task
            and all(_same(identity.get(name, USUAL.get(name)), value) for name, value in self.arm.items())
            and _is_model(str(identity["model"]), self.model)
            and bool(identity["knobs"].get(RELEASED) or decode["knobs"].get(RELEASED)) == self.released
            and decode["method"] == self.decode
            and all(_same(asked_value(self.method, identity["knobs"], name), value) for name, value in self.knobs.items())
            and all(_same(decode["knobs"].get(name), value) for name, value in self.decode_knobs.items())
        )


def merged(plans: Iterable[Planned]) -> list[Planned]:
    """Return what several jobs plan, each measurement once, with the most units that one of them asks for."""
    once: dict[str, Planned] = {}
    for planned in plans:
        known = once.get(planned.key)
        once[planned.key] = planned if known is None or planned.count > known.count else known
    return list(once.values())


def with_recorded(plan: Sequence[Planned], store: Store, device: str | None) -> list[Planned]:
    """Return a plan with how many units of each are recorded in a study. device: the name of the one that will measure, None
    where it is not known: times are of a device and a commit. Raises RecordError for corrupt records."""
    kinds = {planned.kind for planned in plan}
    units: dict[str, list[tuple[Mapping[str, Any], int]]] = {}
    cells = {record["cell"]: record["identity"] for record in store.cells.read()} if kinds & {*OF_CELLS} else {}
    for kind in kinds & {*OF_CELLS}:
        indices: dict[str, set[int]] = defaultdict(set)
        for record in (store.samples if kind == SAMPLES else store.perplexity).read():
            indices[record["cell"]].add(record["index"])
        units[kind] = [(cells[cell], len(recorded)) for cell, recorded in indices.items() if cell in cells]
    runs = {record["run"]: record for record in store.runs.read()} if kinds - {*OF_CELLS} else {}
    for kind in kinds - {*OF_CELLS}:
        records = {TIMINGS: store.latency, MASSES: store.mass, DENSITIES: store.arm_densities}[kind].read()
        units[kind] = [(r["identity"], 1) for r in records if kind != TIMINGS or _is_current(r, runs.get(r["run"]), device)]
    by_arm: dict[tuple[str, Any, Any, Any], list[tuple[Mapping[str, Any], int]]] = defaultdict(list)
    for kind, pairs in units.items():
        for identity, count in pairs:
            by_arm[kind, identity["length"], identity["method"], identity.get("task", "")].append((identity, count))
    complete = []
    for planned in plan:
        near = by_arm.get((planned.kind, planned.length, planned.method, planned.task), [])
        most = max((count for identity, count in near if planned.fits(identity)), default=0)
        complete.append(replace(planned, recorded=min(planned.count, most)))
    return complete


def _is_current(timing: Record, run: Record | None, device: str | None) -> bool:
    """Return whether a record of times need not be made again: another device or commit would make it anew."""
    return run is not None and run["commit"] == commit() and device in (None, timing["device"])


def _is_model(recorded: str, asked: str) -> bool:
    return recorded == asked or recorded.startswith(f"{asked}@") or name_of_path(recorded) == asked


def _same(recorded: Any, asked: Any) -> bool:
    """Return whether two values are equal, numbers to the last digits that a command line has."""
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (recorded, asked))
    return math.isclose(recorded, asked, rel_tol=1e-6, abs_tol=1e-12) if numbers else bool(recorded == asked)
