"""A lock for what several processes on one study would each measure: one does, the others wait and find it recorded."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from harness.study.record_io import opened_locked


@contextmanager
def one_at_a_time(folder: Path, name: str, waits: Callable[[], None]) -> Iterator[None]:
    """Hold the lock `name` of the study in `folder`, waiting for whoever holds it, before which `waits` is called. The system
    lets go of a killed process's lock. Its file is there only meanwhile. Raises RecordError where there can't be one."""
    path = folder / "records" / f"{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    if _is_held(path):
        waits()
    with opened_locked(path, os.O_RDWR | os.O_CREAT, fcntl.LOCK_EX):
        try:
            yield
        finally:
            with suppress(FileNotFoundError):
                path.unlink()  # while it is locked: who waits for it sees that it is gone, and makes another


def _is_held(path: Path) -> bool:
    """Return whether another process holds a lock just now."""
    try:
        with open(path) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no such file, or none that can be locked, which is said where it is locked
        return False
    return False
