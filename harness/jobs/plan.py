"""What a command is to measure: cells and samples of all its jobs, what is recorded of them, and how long the rest takes."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.core import checks
from harness.core.activity import duration
from harness.core.conf_files import groups, setting_names
from harness.core.errors import UserError
from harness.core.method_facts import method_facts
from harness.core.settings import LARGEST_SEED, LONGEST, MOST, Settings
from harness.jobs.table import find_job
from harness.study.columns import PERPLEXITY
from harness.study.planned import (
    DENSITIES,
    DOCUMENTS,
    MASSES,
    OF_CELLS,
    SAMPLES,
    TIMINGS,
    UNITS,
    Planned,
    merged,
    with_recorded,
)
from harness.study.rates import Estimate, estimate, rates_for
from harness.study.store import Store
from harness.tasks.names import expand_tasks

EVALUATE = "evaluate"
"""The job that leaves times out where `latency=false`."""
MOST_STUDIES = 3
"""Studies that a line names which an estimate rests on."""


@dataclass(frozen=True)
class Site:
    """Where a command measures, as far as it is known before it does. device: its name as records have it, or the beginning of
    it; None: not known, as on other machines. device_type: cpu or cuda, None where that is not known either; workers: how many
    processes share the work."""

    device: str | None = None
    device_type: str | None = None
    workers: int = 1

    def recorded_device(self, own: Store, others: Iterable[Store]) -> str:
        """Return the name of the device as it is recorded: the latest that may be it of a study, then of others; "" for none.
        Of one that is not known at all the study alone tells."""
        for store in (own, *(others if self.device else ())):
            with suppress(UserError, OSError):
                names = [run["device"] for run in store.runs.read() if self.device_type in (None, run["device_type"])]
                if fitting := [name for name in names if name.startswith(self.device or "")]:
                    return str(fitting[-1])
        return ""


def planned_by(settings: Settings, device_type: str | None = None) -> list[Planned]:
    """Return what a job is to measure, dense attention first; nothing where it measures no arms of a model. Raises UserError
    for an unknown task."""
    kinds = [kind for kind in find_job(settings.job).plans if kind != TIMINGS or settings.latency or settings.job != EVALUATE]
    tasks = expand_tasks(settings.tasks) if SAMPLES in kinds else []
    plan = []
    for kind in kinds:
        for arm in _arms(settings, device_type):
            if kind in (MASSES, DENSITIES) and arm.method == baseline():
                continue  # it keeps everything
            if kind == SAMPLES:
                own = {"question": settings.question, "sizing": settings.data["sizing"]}
                of_task = replace(arm, kind=kind, count=settings.samples, arm=arm.arm | own)
                plan += [replace(of_task, task=task) for task in tasks]
            elif kind == DOCUMENTS:
                plan.append(replace(arm, kind=kind, task=PERPLEXITY, count=settings.samples))
            elif kind != TIMINGS or arm.method != baseline() or arm.decode is None or settings.options.get("decode_batches"):
                plan.append(replace(arm, kind=kind))
    return plan


def baseline() -> str:
    """Return the method that every other is measured beside: the one without a knob that is a choice of decoding too."""
    return next(name for name in groups()["method"] if name in groups()["decode"] and setting_names("method", name) == ["name"])


def _arms(settings: Settings, device_type: str | None) -> Iterator[Planned]:
    """Yield the arms of a job, with what its settings tell of their identity."""
    fields: dict[str, Any] = {"length": settings.length, "seed": settings.seed, "prefill_chunk": settings.prefill_chunk}
    kind = settings.device_choice.partition(":")[0] if settings.device_choice != "auto" else device_type
    dtype = {"cpu": "float32", "cuda": "bfloat16"}.get(kind or "") if settings.dtype_choice == "auto" else settings.dtype_choice
    known = {"device_type": kind, "dtype": dtype}
    fields |= {name: value for name, value in known.items() if value is not None}
    if settings.dense_kernel != "auto":
        fields["dense_kernel"] = settings.dense_kernel
    dense = Planned("", str(settings.model["name"]), fields | {"method": baseline()})
    yield dense
    full = setting_names("decode", settings.decode) == ["name"]
    given, released = settings.given, settings.as_released
    knobs = _knobs("decode", settings.decode_knobs, given, released)
    decode: dict[str, Any] = {} if full else {"decode": settings.decode, "decode_knobs": knobs}
    if settings.method == baseline():
        if not full:
            yield replace(dense, released=released, **decode)
        return
    sparsity = settings.sparsity if not released or "sparsity" in given else None
    fields |= {"method": settings.method}
    if sparsity is not None:
        fields["sparsity"] = sparsity
    if not released or "block_size" in given:
        fields["block_size"] = settings.block_size
    if settings.kernel != "auto":
        fields["kernel"] = settings.kernel
    facts = method_facts(settings.method)
    knobs = _knobs("method", settings.method_knobs, given, released)
    decided = (*facts.searched, *facts.instead) if sparsity is not None else ()
    knobs = {name: value for name, value in knobs.items() if name not in decided}
    yield Planned("", dense.model, fields, knobs, released=released, **decode)


def _knobs(group: str, knobs: Mapping[str, Any], given: Iterable[str], released: bool) -> dict[str, Any]:
    """Return the knobs whose values the settings tell: null stands for what the method makes of it, and where it runs as
    released only those that were given do."""
    own = {*given}
    return {name: value for name, value in knobs.items() if value is not None and (not released or f"{group}.{name}" in own)}


CHEAP: dict[str, Callable[[Any], dict[str, Any]]] = {
    "length": lambda value: {"length": checks.whole_number("length", value, 1, LONGEST)},
    "samples": lambda value: {"samples": checks.whole_number("samples", value, 1, MOST)},
    "seed": lambda value: {"seed": checks.whole_number("seed", value, 0, LARGEST_SEED)},
    "sparsity": lambda value: {"sparsity": checks.sparsity("sparsity", value)},
    "task": lambda value: {"tasks": (value,) if isinstance(value, str) else tuple(value)},
}
"""Settings that change no other, and are set without composing all of them anew."""


def settings_of_jobs(jobs: Sequence[Sequence[str]], compose: Callable[[list[str]], Settings]) -> list[Settings]:
    """Return the settings of the jobs of a sweep, without those that can't be: the job itself will say why. compose: takes the
    arguments of a job; it is called once for all jobs that differ in what is CHEAP alone."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parser, composed = OverridesParser.create(), dict[tuple[str, ...], Settings | None]()
    several = []
    for job in jobs:
        cheap = {a.partition("=")[0]: a for a in job if a.partition("=")[0] in CHEAP}
        key = tuple(a for a in job if a not in cheap.values())
        with suppress(UserError, TypeError, ValueError):
            if key not in composed:
                composed[key] = None
                composed[key] = compose(list(job))
            settings = composed[key]
            if settings is not None:
                for name, argument in cheap.items():
                    settings = replace(settings, **CHEAP[name](parser.parse_override(argument).value()))
                several.append(settings)
    return several


def plans_of(jobs: Iterable[Settings], site: Site, store_of: Callable[[Path], Store]) -> dict[Path, list[Planned]]:
    """Return what jobs are to measure by the folder of its study, each once, with what is recorded of it."""
    by_folder: dict[Path, list[Planned]] = defaultdict(list)
    for settings in jobs:
        with suppress(UserError):
            by_folder[settings.folder] += planned_by(settings, site.device_type)
    plans = {}
    for folder, plan in by_folder.items():
        plans[folder] = merged(plan)
        with suppress(UserError, OSError):  # damaged records are said where they are needed
            plans[folder] = with_recorded(plans[folder], store_of(folder), site.device)
    return {folder: plan for folder, plan in plans.items() if plan}


def plan_lines(plans: Mapping[Path, Sequence[Planned]], jobs: int, site: Site, store_of: Callable[[Path], Store]) -> list[str]:
    """Return what is said before the work begins: how much it is, how much of that is there, and how long the rest takes."""
    lines = []
    for folder, plan in plans.items():
        of_jobs = f"{jobs} jobs, " if jobs > 1 and len(plans) == 1 else ""
        lines.append(f"study={folder.name}: {of_jobs}{counts(plan)}; {_there(plan)}")
        left = [planned for planned in plan if planned.left]
        if left:
            own, others = store_of(folder), beside(folder)
            device = site.recorded_device(own, others)
            rates = rates_for(left, own, others, device, by_sample=True)
            expected = estimate([(planned, planned.left) for planned in left], rates)
            lines.append(estimate_line(expected, left, device or site.device or "", site.workers, folder.name))
    return lines


def beside(folder: Path) -> list[Store]:
    """Return the other studies with records in the folder of a study, the latest first."""
    with suppress(OSError):
        folders = [path.parent for path in folder.parent.glob("*/records") if path.parent != folder]
        return [Store(path) for path in sorted(folders, key=lambda path: -(path / "records").stat().st_mtime)]
    return []


def counts(plan: Sequence[Planned]) -> str:
    """Return how much is planned: "12 cells, 600 samples and 3 timings"."""
    units = Counter[str]()
    for planned in plan:
        units[planned.kind] += planned.count
    return _cells(sum(planned.kind in OF_CELLS for planned in plan), units)


def _there(plan: Sequence[Planned]) -> str:
    """Return how much of a plan is recorded."""
    units, cells = Counter[str](), sum(planned.kind in OF_CELLS and not planned.left for planned in plan)
    for planned in plan:
        units[planned.kind] += planned.recorded
    if not any(planned.left for planned in plan):
        return "all of it is recorded"
    return f"recorded already: {_cells(cells, units)}" if any(units.values()) else "nothing of it is recorded yet"


def _cells(cells: int, units: Mapping[str, int]) -> str:
    parts = [f"{cells:,} {'cell' if cells == 1 else 'cells'}"] if cells or set(units) & {*OF_CELLS} else []
    parts += [f"{count:,} {UNITS[kind][count != 1]}" for kind, count in units.items() if count or kind in OF_CELLS]
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def estimate_line(expected: Estimate, left: Sequence[Planned], device: str, workers: int, study: str) -> str:
    """Return how long what is left takes, and what that rests on; what has no rate is said, and not guessed."""
    lengths = sorted({planned.length for planned in expected.unknown})
    where = f" on {device}" if device else ""
    missing = f"no rate measured yet{where} at {', '.join(f'{length:,}' for length in lengths)} tokens" if lengths else ""
    if len(expected.unknown) == len(left):
        return f"{missing}: how long it takes is not known"
    workers = max(1, min(workers, len(left)))
    shared = f" on {workers} workers" if workers > 1 else ""
    basis = _basis(expected.studies, study)
    rest = f"; {missing}, which {'is' if len(lengths) == 1 else 'are'} left out of it" if missing else ""
    return f"about {duration(expected.seconds / workers)}{shared}, at the pace of {basis}{where}{rest}"


def _basis(studies: Mapping[str, int], own: str) -> str:
    """Return how many units of which studies a pace is of."""
    ordered = sorted(studies.items(), key=lambda pair: (pair[0] != own, -pair[1], pair[0]))
    named = [f"{count:,} in {'this study' if name == own else name}" for name, count in ordered[:MOST_STUDIES]]
    named[0] = named[0].replace(" in ", " measurements in ", 1)
    count = len(ordered) - MOST_STUDIES
    more = f" and {count} other {'study' if count == 1 else 'studies'}" if count > 0 else ""
    return f"{', '.join(named)}{more}"
