"""What a command says before its work begins, and what it tells of itself while it lasts (`harness.study.running`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig, open_dict

from harness.core.activity import CURRENT, OVERALL
from harness.core.settings import Settings, read_settings
from harness.jobs.command_state import CommandState
from harness.jobs.one_job import as_composed
from harness.jobs.plan import Site, beside, plan_lines, plans_of, settings_of_jobs
from harness.report.status import status_of
from harness.report.status_text import summary_line
from harness.study.planned import Planned
from harness.study.provenance import device_name
from harness.study.running import of_process
from harness.study.store import Store
from harness.tasks.names import expand_tasks

Compose = Callable[[list[str]], DictConfig]
"""Composes the config of a job from its arguments, with Hydra's own part."""
_COMMAND: ContextVar[CommandState | None] = ContextVar("the command that sweeps", default=None)


@contextmanager
def announcing(command: CommandState) -> Iterator[None]:
    """Let the launchers of this process tell the command what it is to do, and have it tell of itself."""
    token = _COMMAND.set(command)
    try:
        yield
    finally:
        _COMMAND.reset(token)
        OVERALL.clear()
        CURRENT.end()
        CURRENT.job = (0, 0)


def command_that_sweeps() -> CommandState | None:
    """Return the command whose jobs this process shares out or runs; None in a worker."""
    return _COMMAND.get()


def note_jobs(compose: Compose, jobs: Sequence[Sequence[str]]) -> None:
    """Note the jobs of a sweep that this process will run one after the other. What of them can't be composed says so later."""
    command = _COMMAND.get()
    if command is not None:
        command.count = len(jobs)
        command.jobs = settings_in_advance(compose, jobs)


def begin(command: CommandState, settings: Settings, *, measures: bool) -> None:
    """Note that a job begins, and before the first one say what all of them are: of one that measures, once its input is
    checked, as bad input is one line. A worker says nothing: its command has."""

    def announce() -> None:
        if command is _COMMAND.get() and not command.announced:
            device = settings.device
            announce_jobs(command, command.jobs or [settings], max(1, command.count), Site(device_name(device), device.type))

    command.number += 1
    if command.count:
        CURRENT.job = (command.number, command.count)
    if measures:
        command.sweep.before_model = announce
    else:
        announce()
    running = of_process()
    running.device = device_name(settings.device)
    running.enter(settings.folder)


def announce_cases(command: CommandState, settings: Settings, plan: Sequence[Planned]) -> None:
    """Say what a study of kernels is to time, where the job knows it."""
    site = Site(device_name(settings.device), settings.device.type)
    _announce_plans(command, {settings.folder: plan}, 1, site, show=settings.progress)


def announce_jobs(command: CommandState, jobs: Sequence[Settings], count: int, site: Site, *, workers: int = 0) -> None:
    """Say what jobs are to do, and tell it to whoever looks at the state of this process. workers: processes that it leaves all
    of the work to."""
    shown = [replace(job, tasks=tuple(expand_tasks(job.tasks))) for job in jobs]
    margin = jobs[0].margin
    plans = plans_of(shown, site, lambda folder: command.study_at(folder, margin).store)
    _announce_plans(command, plans, count, site, show=jobs[0].progress, workers=workers)


def _announce_plans(
    command: CommandState, plans: Mapping[Path, Sequence[Planned]], count: int, site: Site, *, show: bool, workers: int = 0
) -> None:
    command.announced = True
    if show:
        for line in plan_lines(plans, count, site, Store):
            say_dimly(command, line)
    running = of_process()
    running.workers = workers
    for folder, plan in plans.items():
        running.device = site.recorded_device(Store(folder), beside(folder))
        running.enter(folder, plan)
    if plans:
        stores = [(Store(folder), beside(folder)) for folder in plans]  # of its own: another thread reads them
        OVERALL.append(lambda: "; ".join(summary_line(status_of(store, others)) for store, others in stores))


def say_dimly(command: CommandState, line: str) -> None:
    """Say what is no result."""
    command.console.print(line, style="dim", highlight=False, soft_wrap=True)


def settings_in_advance(compose: Compose, jobs: Sequence[Sequence[str]]) -> list[Settings]:
    """Return the settings of jobs, without those that can't be."""

    def settings_of(arguments: list[str]) -> Settings:
        cfg = compose(arguments)
        with as_composed(cfg.hydra):
            with open_dict(cfg):
                del cfg["hydra"]
            return read_settings(cfg)

    return settings_of_jobs(jobs, settings_of)
