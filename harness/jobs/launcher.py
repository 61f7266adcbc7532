"""The launcher of sweeps on several workers, as `hydra/launcher=NAME` and `devices=` choose it (conf/hydra/launcher)."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins

from harness.core.conf_files import conf_dir
from harness.core.errors import UserError
from harness.jobs.engines import ENGINES, Workplace, check_engine
from harness.jobs.handout import Handout
from harness.jobs.launcher_settings import DEVICES, VISIBLE, LauncherSettings, launcher_settings
from harness.jobs.work import Outcome, Work
from harness.jobs.worker_devices import NONE, worker_variables
from harness.jobs.worker_folders import folder_of_command

MOST_LAUNCHES = 1000
"""Of one process in one second."""


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


def launch_jobs(
    engine: str, place: Mapping[str, Any], jobs: Sequence[Sequence[str]], announced: AbstractContextManager[None]
) -> None:
    """Run the jobs of the command that sweeps on workers, inside `announced`, which is entered once the launcher's settings are
    checked: what is wrong with them is one line. Outcomes, and an error too, stay in its Launch: Hydra would write a line of
    its own."""
    launch = _LAUNCH.get()
    try:
        settings = launcher_settings(engine, place)
        environments = worker_variables(settings, len(jobs))
        shown = _new_folder(settings.folder)
        try:
            check_engine(engine, settings.gpus, settings.parameters)
        except UserError:
            shown.rmdir()
            raise
        with announced:
            launch.outcomes += run_on_workers(settings, environments, jobs, launch, shown)
    except Exception as error:
        launch.error = error


def run_on_workers(
    settings: LauncherSettings,
    environments: Sequence[dict[str, str]],
    jobs: Sequence[Sequence[str]],
    launch: Launch,
    shown: Path,
) -> list[Outcome]:
    """Run jobs on workers, one for each of the environments, and return what they have done; what is to be said of a worker
    that was lost is said. shown: the folder of their files. Raises UserError where the workers can't be started."""
    works = [
        Work(
            number=number,
            jobs=[list(job) for job in jobs],
            arguments=launch.arguments,
            given=launch.given,
            folder=os.getcwd(),
            files=str(shown.resolve()),
            environment=environment,
            gpus=settings.gpus or int(settings.devices is not None and environment[VISIBLE] != NONE),
            debug=launch.debug,
            launch=launch.id,
        )
        for number, environment in enumerate(environments)
    ]
    print(f"{len(jobs)} jobs on {len(works)} workers ({settings.engine}); what they print is in {shown}", file=sys.stderr)
    workplace = Workplace(shown.resolve(), settings.gpus, settings.parameters, settings.cpus)
    with folder_of_command(shown) as ending:
        outcomes = ENGINES[settings.engine](works, workplace)
        for line in _losses(works, outcomes, shown):
            print(f"error: {line}", file=sys.stderr)
        ending.well = all(outcome.code == 0 for outcome in outcomes)
    return outcomes


def _losses(works: Sequence[Work], outcomes: Sequence[Outcome], folder: Path) -> Iterator[str]:
    """Yield what is to be said of workers that were lost, and of jobs that no worker was left for."""
    jobs = works[0].jobs if works else []
    handout = Handout(folder, jobs)
    for work, outcome in zip(works, outcomes, strict=True):
        if outcome.lost:
            at = "; ".join(swept(jobs, number) for number in handout.in_hand(work.number))
            log = folder / work.log
            yield (
                f"worker {work.number} was lost{' at ' * bool(at)}{at} ({outcome.lost}): what it printed is in "
                f"{log if log.exists() else folder}; what is finished is recorded, the same command carries on"
            )
    if left := len(handout.left()):
        yield f"{left} of {len(jobs)} jobs were not begun, as no worker was left: the same command carries on"


def swept(jobs: Sequence[Sequence[str]], number: int) -> str:
    """Return those arguments of a job of a sweep that not all of its jobs have."""
    return " ".join(a for a in jobs[number] if not all(a in job for job in jobs)) or " ".join(jobs[number])


def _new_folder(parent: str) -> Path:
    """Make a folder for the workers of one launch, of which a sweep may have several. Raises UserError where there can't be
    one."""
    stem = Path(parent) / f"{datetime.now():%Y%m%d-%H%M%S}-{os.getpid()}"
    try:
        for folder in (stem, *(stem.with_name(f"{stem.name}-{number}") for number in range(2, MOST_LAUNCHES))):
            with suppress(FileExistsError):
                folder.mkdir(parents=True)
                return folder
    except OSError as error:
        raise UserError(f"hydra.launcher.folder={parent}: no folder can be made there ({error.strerror})") from None
    raise UserError(f"hydra.launcher.folder={parent}: no folder can be made there (it is a file)")


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
