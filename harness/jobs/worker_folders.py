"""The folders of workers' files, a folder for each command: what is kept of them, and for how long."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from harness.core.partial_files import host_id, is_running

MOST_FAILED = 10
"""Folders of commands that failed which are kept, the latest."""
LONGEST_SECONDS = 7 * 24 * 3600
"""Seconds without a change after which one of them goes in any case."""
NAME = re.compile(r"\d{8}-\d{6}-\d+(-\d+)?")
"""What such a folder is called: date, time and process of the command, and which of its launches."""
MARKER = re.compile(r"running-(?P<host>[0-9a-f]{12})-(?P<process>\d+)")
"""A file that is there while the command runs."""


@dataclass
class Ending:
    """How a command of workers ended. well: every worker did all of its jobs."""

    well: bool = False


@contextmanager
def folder_of_command(folder: Path) -> Iterator[Ending]:
    """Keep the folder of a command's workers while it runs, and after that where it did not end well. Of those beside it, which
    failed commands left, the latest MOST_FAILED stay. Nothing that can't be removed is an error."""
    marker, ending = folder / f"running-{host_id()}-{os.getpid()}", Ending()
    with suppress(OSError):
        marker.touch()
    try:
        yield ending
    finally:
        with suppress(OSError):
            marker.unlink()
        if ending.well:
            shutil.rmtree(folder, ignore_errors=True)
        remove_old(folder.parent)


def remove_old(parent: Path) -> None:
    """Remove the folders of commands that ended a week ago, and all but the latest MOST_FAILED; nothing else there."""
    ended = []
    with suppress(OSError):
        ended = [path for path in parent.iterdir() if NAME.fullmatch(path.name) and path.is_dir() and not _runs(path)]
    ended.sort(key=lambda path: path.name, reverse=True)
    for place, path in enumerate(ended):
        if place >= MOST_FAILED or _unchanged_for(path) > LONGEST_SECONDS:
            shutil.rmtree(path, ignore_errors=True)


def _runs(folder: Path) -> bool:
    """Return whether the command of a folder runs: on this host as the system says, on another if it changed within a week."""
    with suppress(OSError):
        for path in folder.iterdir():
            if match := MARKER.fullmatch(path.name):
                if match["host"] != host_id():
                    return _unchanged_for(folder) <= LONGEST_SECONDS
                return is_running(int(match["process"]))
    return False


def _unchanged_for(folder: Path) -> float:
    """Return the seconds since anything in a folder was written; 0 where that can't be told."""
    latest = 0.0
    with suppress(OSError):
        latest = max(path.stat().st_mtime for path in (folder, *folder.rglob("*")))
    return time.time() - latest if latest else 0.0
