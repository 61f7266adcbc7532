"""The launcher of sweeps on several workers, as `hydra/launcher=NAME` and `devices=` choose it (conf/hydra/launcher)."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins

from harness.core.conf_files import conf_dir
from harness.core.errors import UserError
from harness.jobs.engines import ENGINES, Workplace, by_device
from harness.jobs.work import Outcome, Work

FEW_CPUS = re.compile(r"cpu:([1-9]\d{0,3})")
INDICES = re.compile(r"\d+(,\d+)*")
OF_MODEL = ("model", "device", "dtype")
"""What a model is loaded by: jobs that agree in these, and in what is below them, share one."""
DEVICES = "devices"


@dataclass
class Launch:
    """What the command that sweeps hands its launcher, its id among it, and what this hands back: the workers' outcomes."""

    arguments: Sequence[str]
    given: Sequence[str]
    debug: bool
    id: str = ""
    outcomes: list[Outcome] = field(default_factory=list)
    error: Exception | None = None


_LAUNCH: ContextVar[Launch] = ContextVar("the command that sweeps")


@contextmanager
def launching(launch: Launch) -> Iterator[None]:
    """Let the launchers of this module know the command that they work for."""
    _own_files_alone()
    token = _LAUNCH.set(launch)
    try:
        yield
    finally:
        _LAUNCH.reset(token)


def _own_files_alone() -> None:
    """Have Hydra read our files of launchers as they are. Plugins with launchers of the same names, where they are installed,
    would have them be like their own."""
    Plugins.instance()  # which reads the plugins
    others = ConfigStore.instance().repo.get("hydra", {}).get("launcher", {})
    for path in (conf_dir() / "hydra" / "launcher").glob("*.yaml"):
        others.pop(path.name, None)


def launch_jobs(engine: str, place: Mapping[str, Any], jobs: Sequence[Sequence[str]]) -> None:
    """Run the jobs of the command that sweeps on workers. Outcomes, and an error too, stay in its Launch: Hydra would write a
    line of its own."""
    launch = _LAUNCH.get()
    try:
        launch.outcomes += run_on_workers(engine, place, jobs, launch)
    except Exception as error:
        launch.error = error


def run_on_workers(engine: str, place: Mapping[str, Any], jobs: Sequence[Sequence[str]], launch: Launch) -> list[Outcome]:
    """Run jobs on workers and return what they have done; what is to be said of a worker that died is said. Raises UserError
    for settings of the launcher that can't be."""
    if engine not in ENGINES:
        raise UserError(f"hydra.launcher.engine={engine}: must be one of {', '.join(ENGINES)}")
    devices = devices_of(str(place["devices"])) if DEVICES in place else []
    count = len(devices) if devices else _whole("workers", place["workers"], 1)
    environment = {str(name): str(value) for name, value in (place.get("env") or {}).items()}
    runs = shares(jobs, count)
    parts = [Work(run, launch.arguments, launch.given, os.getcwd(), environment, launch.debug, launch.id) for run in runs]
    shown = Path(place["folder"]) / f"{datetime.now():%Y%m%d-%H%M%S}-{os.getpid()}"
    folder = shown.resolve()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"hydra.launcher.folder={place['folder']}: no folder can be made there ({error.strerror})") from None
    workplace = Workplace(folder, _whole("gpus", place.get("gpus", 0), 0), dict(place.get("parameters") or {}))
    printed = "Ray's logs" if engine == "ray" else shown
    print(f"{len(jobs)} jobs on {len(parts)} workers ({engine}); what they print is in {printed}", file=sys.stderr)
    ended = ENGINES[engine](by_device(parts, devices) if devices else parts, workplace)
    for number, (outcome, run) in enumerate(zip(ended, runs, strict=True)):
        if outcome is None:
            print(
                f"error: worker {number}, of {len(run)} jobs, ended before they were done: what it printed is in "
                f"{printed}; what is finished is recorded, the same command carries on",
                file=sys.stderr,
            )
    return [outcome if outcome is not None else Outcome(code=1) for outcome in ended]


def shares(jobs: Sequence[Sequence[str]], workers: int) -> list[list[list[str]]]:
    """Return the jobs in at most `workers` runs of nearly the same length, those of a model next to each other: all workers
    together load at most as many models as there are, and one more for each worker after the first."""
    models: dict[tuple[str, ...], list[list[str]]] = {}
    for job in jobs:
        models.setdefault(tuple(sorted(filter(_of_model, job))), []).append(list(job))
    ordered = [job for group in models.values() for job in group]
    count = min(workers, len(ordered))
    cuts = [len(ordered) * number // count for number in range(count + 1)] if count else []
    return [ordered[start:end] for start, end in pairwise(cuts)]


def _of_model(argument: str) -> bool:
    name = argument.partition("=")[0].lstrip("+")
    return name in OF_MODEL or name.startswith("model.")


def devices_of(choice: str) -> list[str]:
    """Return the devices that `devices=` names, one a worker: "cpu", or what CUDA_VISIBLE_DEVICES takes. Raises UserError."""
    if match := FEW_CPUS.fullmatch(choice):
        return ["cpu"] * int(match[1])
    if choice != "all" and not INDICES.fullmatch(choice):
        raise UserError(f"devices={choice}: must be all, cpu:N for N workers on the CPU, or indices of GPUs such as 0,2")
    import torch  # which takes seconds

    count = torch.cuda.device_count()
    if not count:
        raise UserError(f"devices={choice}: torch finds no CUDA device here; devices=cpu:2 runs two workers on the CPU")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",")[:count] if visible else [str(index) for index in range(count)]
    asked = list(range(count)) if choice == "all" else [int(index) for index in choice.split(",")]
    if max(asked) >= count or len(set(asked)) < len(asked):
        raise UserError(f"devices={choice}: each of the {count} GPUs here once at most, 0 to {count - 1}")
    return [names[index] for index in asked]


def _whole(name: str, value: Any, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UserError(f"hydra.launcher.{name}={value}: must be a whole number, at least {least}")
    return value


def as_launched(arguments: Sequence[str], *, sweeps: bool) -> list[str]:
    """Return the arguments with `devices=` as the launcher that it is short for. Raises UserError where nothing is swept, or
    another launcher is named."""
    choices = [a.partition("=")[2].strip("'\"[]") for a in arguments if a.partition("=")[0] == DEVICES]
    if not choices:
        return list(arguments)
    if not sweeps:
        raise UserError(f"devices={choices[-1]}: it shares out the jobs of a sweep: add -m, or use device= for one job")
    if any(a.lstrip("+").startswith("hydra/launcher=") for a in arguments):
        raise UserError(f"devices={choices[-1]}: it is a launcher of its own: leave it or hydra/launcher= out")
    rest = [a for a in arguments if a.partition("=")[0] != DEVICES]
    return [*rest, "hydra/launcher=processes", f"hydra.launcher.devices='{choices[-1]}'"]
