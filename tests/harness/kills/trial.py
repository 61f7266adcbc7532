"""One command in processes of its own, forked off this one, which has imported everything; and its death.

A process dies by SIGKILL: at a moment, or just before it changes a file of its folder for the nth time. The latter meets the
moments between two writes, which the former rarely does.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.harness.kills.cases import Case

CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree", "fcntl.flock"}
"""Events of Python's audit hooks that change, or are about to change, a file; and `open` for writing."""
LONGEST = 300.0
"""Seconds that a command may take."""


@dataclass(frozen=True)
class Death:
    """When a process is killed: after some seconds, or before its nth change of a file. victims: how many of several."""

    seconds: float | None = None
    change: int | None = None
    victims: int = 1

    def __str__(self) -> str:
        return f"after {self.seconds:.3f} s" if self.seconds is not None else f"before change {self.change}"


@dataclass(frozen=True)
class Ended:
    """How the processes of a command ended: their exit codes (-9: killed), seconds, and of the first, unless it was killed, its
    changes of files and the modules that it imported."""

    codes: list[int]
    seconds: float
    changes: int = 0
    modules: tuple[str, ...] = ()


def draw_death(rng: random.Random, case: Case, whole: Ended, number: int) -> Death:
    """Every other death is by a moment, the others by a change of a file, somewhere in a run as `whole` was."""
    victims = case.processes if case.joined else rng.randint(1, case.processes)
    if number % 2:
        return Death(seconds=rng.uniform(0, whole.seconds), victims=victims)
    return Death(change=rng.randint(1, whole.changes), victims=victims)


def run(case: Case, command: tuple[str, ...], folder: Path, death: Death | None = None, processes: int | None = None) -> Ended:
    """Run a command in a folder, in as many processes as the case has, and kill them where `death` says so."""
    count = case.processes if processes is None else processes
    began = time.monotonic()
    port = free_port() if case.joined and count > 1 else 0
    children = [fork(command, folder, rank, count, port, death) for rank in range(count)]
    if death is not None and death.seconds is not None:
        time.sleep(death.seconds)
        for child in children[: death.victims]:
            os.kill(child, signal.SIGKILL)
    codes = wait_for(children, began + LONGEST, all_die=case.joined)
    seconds = time.monotonic() - began
    counted = folder.parent / f"{folder.name}.counted"
    text = counted.read_text() if counted.exists() else ""  # nothing in it: killed as it wrote that
    changes, modules = json.loads(text) if text else (0, [])
    return Ended(codes, seconds, changes, tuple(modules))


def wait_for(children: list[int], until: float, *, all_die: bool) -> list[int]:
    """Wait for all children; return their exit codes. Where one was killed and they train together, so are the others, as a
    launcher does it."""
    codes: dict[int, int] = {}
    while len(codes) < len(children):
        for child in set(children) - set(codes):
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                codes[child] = os.waitstatus_to_exitcode(status)
        dead = any(code < 0 for code in codes.values())
        if time.monotonic() > until or (all_die and dead):
            for child in set(children) - set(codes):
                os.kill(child, signal.SIGKILL)
        time.sleep(0.005)
    return [codes[child] for child in children]


def fork(command: tuple[str, ...], folder: Path, rank: int, count: int, port: int, death: Death | None) -> int:
    """Start a process with a command, and return its number."""
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        log = os.open(folder.parent / f"{folder.name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)  # not what a test captures
        os.chdir(folder)
        if port:
            where = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}
            os.environ |= {"MASTER_ADDR": "127.0.0.1"} | {name: str(value) for name, value in where.items()}
        victim = death is not None and rank < death.victims
        changes = count_changes(folder, death.change if victim and death is not None else None)
        from hydra._internal.hydra import Hydra

        from harness.__main__ import main

        if "-m" not in command:
            Hydra.get_mode = lambda *_, **__: None  # type: ignore[method-assign, assignment]  # composes all once more
        code = main(list(last_of_each(command)))
        sys.stdout.flush()
        if rank == 0:
            (folder.parent / f"{folder.name}.counted").write_text(json.dumps([changes[0], list(sys.modules)]))
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def count_changes(folder: Path, last: int | None) -> list[int]:
    """Count the changes of files in a folder, in a list of one; at the change `last` the process kills itself."""
    count, root = [0], str(folder)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in CHANGES and not (event == "open" and writes(arguments)):
            return
        place = arguments[0]
        if isinstance(place, str | bytes | os.PathLike) and not os.path.abspath(os.fsdecode(place)).startswith(root):
            return
        count[0] += 1
        if count[0] == last:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return count


def writes(arguments: tuple[Any, ...]) -> bool:
    """Whether an `open` is for writing: (path, mode or None, flags)."""
    _, mode, flags = arguments
    return bool(flags & (os.O_WRONLY | os.O_RDWR)) if mode is None else not set(mode).isdisjoint("wax+")


def last_of_each(command: tuple[str, ...]) -> list[str]:
    """The arguments, of which later ones win."""
    return list({a.partition("=")[0] if "=" in a else a: a for a in command}.values())


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
