"""The state of the processes that work on a study, one small file each: `results/STUDY/running/HOST-PID.json`.

A thread of the process writes it every few seconds, in place of the one before, whole or not at all, and removes it at the
process's end. What is left of a process that died says so: its host and its number, and when it last wrote. The files only
tell: nothing is decided by them, and where none can be written, the work goes on without.
"""

from __future__ import annotations

import atexit
import os
import platform
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import msgspec

from harness.core.activity import CURRENT, every
from harness.core.partial_files import ABANDONED_SECONDS, host_id, is_running, partial_path
from harness.study.parts import start_of
from harness.study.planned import Planned
from harness.study.provenance import command

FOLDER = "running"
"""Where the files lie, in the folder of the study."""
SECONDS = 5.0
"""Seconds between two writes."""
SILENT_SECONDS = 120.0
"""Seconds without a write after which a process of another host counts as dead: it can't be asked."""


@dataclass(frozen=True)
class Doing:
    """What a process does, as `harness.core.activity.Activity` has it. cells: by id, samples done and how many there were."""

    text: str = ""
    length: int | None = None
    task: str = ""
    done: int = 0
    total: int = 0
    first: int = 0
    since: float = 0.0
    moved: float = 0.0
    job: tuple[int, int] = (0, 0)
    cells: dict[str, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class PlannedTasks:
    """What is planned of one arm: all that its cells have in common, and by task how many units were recorded."""

    of_all: Planned
    tasks: dict[str, int]


@dataclass(frozen=True)
class State:
    """A process that works on a study. host, host_id, pid and start (`parts.start_of`, 0 where it is not told): which one;
    began and wrote: in seconds of time.time; log: the file that it prints into, if it does; device: the name of the one it
    measures on, "" where it is not known; plan: what its command measures, empty for a worker; workers: how many processes do
    that, where it leaves the work to others, else 0."""

    host: str
    host_id: str
    pid: int
    began: float
    wrote: float
    command: str
    log: str = ""
    device: str = ""
    workers: int = 0
    plan: tuple[PlannedTasks, ...] = ()
    doing: Doing = field(default_factory=Doing)
    start: int = 0

    @property
    def planned(self) -> list[Planned]:
        """Return what its command measures."""
        return [
            replace(group.of_all, task=task, recorded=recorded) for group in self.plan for task, recorded in group.tasks.items()
        ]

    @property
    def is_alive(self) -> bool:
        """Return whether the process runs: on this host as the system says, else if it wrote within SILENT_SECONDS."""
        if self.host_id == host_id():
            return is_running(self.pid) and self.start in (0, start_of(self.pid))  # its number may be another one's now
        return time.time() - self.wrote < SILENT_SECONDS


class Running:
    """This process, as it tells of itself in the folders of studies. Nothing that goes wrong with its files is raised."""

    def __init__(self) -> None:
        self.pid, self.began, self.workers, self.device = os.getpid(), time.time(), 0, ""
        self.plans: dict[Path, tuple[PlannedTasks, ...]] = {}
        self._log = _log()
        self._written: set[Path] = set()

    def enter(self, folder: Path, plan: Sequence[Planned] = ()) -> None:
        """Tell of this process in the folder of a study, too, with what its command measures there."""
        if plan or folder not in self.plans:
            self.plans[folder] = _by_arm(plan)

    def write(self) -> None:
        """Write the files, one in each folder."""
        doing = Doing(**{name: value for name, value in asdict(CURRENT).items() if name != "cells"}, cells=_cells())
        for folder, plan in list(self.plans.items()):
            state = State(
                host=platform.node(),
                host_id=host_id(),
                pid=self.pid,
                began=self.began,
                wrote=time.time(),
                command=command(),
                log=self._log,
                device=self.device,
                workers=self.workers,
                plan=plan,
                doing=doing,
                start=start_of(self.pid),
            )
            with suppress(OSError):
                self._replace(folder / FOLDER / _name(), msgspec.json.encode(state))

    def _replace(self, path: Path, content: bytes) -> None:
        """Put a file at a path, in place of what was there. It is not synced: it tells of a process that a crash ends too."""
        if path not in self._written:
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove_dead(path.parent)
            self._written.add(path)
        partial = partial_path(path)
        try:
            partial.write_bytes(content)
            partial.replace(path)
        finally:
            with suppress(OSError):
                partial.unlink()

    def remove(self) -> None:
        """Take the files away, those of its workers that died, and the folder where no other process tells of itself."""
        if os.getpid() != self.pid:  # a fork of it
            return
        for path in self._written:
            with suppress(OSError):
                path.unlink()
            _remove_dead(path.parent)
            with suppress(OSError):
                path.parent.rmdir()


_OWN: list[Running] = []
"""What this process tells of itself by, once it does."""


@contextmanager
def telling() -> Iterator[Running]:
    """Have this process tell of itself inside, in the folders of the studies that it enters."""
    running = Running()
    _OWN.append(running)
    try:
        with every(SECONDS, running.write):
            yield running
    finally:
        _OWN.remove(running)
        running.remove()


def of_process() -> Running:
    """Return what this process tells of itself by: that of the block of `telling` around it; a worker, which is in none, tells
    until it ends."""
    if not _OWN or _OWN[-1].pid != os.getpid():
        stack = ExitStack()
        stack.enter_context(telling())
        atexit.register(stack.close)
    return _OWN[-1]


def states_in(study: Path) -> list[State]:
    """Return the processes that tell, or told, of themselves in the folder of a study, by host and number. What can't be read
    is left out: it may just be taken away."""
    states = []
    for path in sorted((study / FOLDER).glob("*.json")):
        with suppress(OSError, msgspec.DecodeError, RecursionError):
            states.append(msgspec.json.decode(path.read_bytes(), type=State))
    return sorted(states, key=lambda state: (state.host, state.pid))


def _by_arm(plan: Sequence[Planned]) -> tuple[PlannedTasks, ...]:
    """Return a plan with the tasks of an arm together, as there may be thousands of cells."""
    groups: dict[str, PlannedTasks] = {}
    for planned in plan:
        of_all = replace(planned, task="", recorded=0)
        groups.setdefault(repr(of_all), PlannedTasks(of_all, {})).tasks[planned.task] = planned.recorded
    return tuple(groups.values())


def _remove_dead(folder: Path) -> None:
    """Remove what processes of this host left that are dead, and what no process of another wrote to for a day."""
    for path in folder.glob("*.json"):
        with suppress(OSError, msgspec.DecodeError, RecursionError):
            state = msgspec.json.decode(path.read_bytes(), type=State)
            silent = time.time() - state.wrote > ABANDONED_SECONDS
            if silent if state.host_id != host_id() else not state.is_alive:
                path.unlink()


def _name() -> str:
    host = re.sub(r"[^A-Za-z0-9_.]+", "_", platform.node())[:100] or "host"
    return f"{host}-{os.getpid()}.json"


def _cells() -> dict[str, tuple[int, int]]:
    return {cell: (done, lacking) for cell, (done, lacking) in list(CURRENT.cells.items())}


def _log() -> str:
    """Return the file that this process prints into; "" where that is a terminal or a pipe, or not known."""
    with suppress(OSError):
        path = os.readlink("/proc/self/fd/1")
        if os.path.isfile(path) and path.startswith("/"):
            return path
    return ""
