"""A lock for what several processes on one study would each measure: one does, the others wait and find it recorded.

Where locks don't work, the file of the lock alone says that it is held: its holder writes its time anew every few seconds.
Whoever waits takes it over once the holder is dead, or has been silent for minutes. Two that do so at once both measure the
same, which counts once.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from harness.study.parts import is_dead, process_name
from harness.study.record_io import LocksFail, RecordError, make_folder, opened_locked

SIGN_SECONDS = 10.0
"""How often a holder says that it is there, where locks don't work."""
SILENT_SECONDS = 180.0
"""How long it may be silent: file systems show the time of a file a minute late."""
LOOK_SECONDS = 0.5
"""How often who waits looks again."""


@contextmanager
def one_at_a_time(folder: Path, name: str, waits: Callable[[], None]) -> Iterator[None]:
    """Hold the lock `name` of the study in `folder`, waiting for whoever holds it, before which `waits` is called. A killed
    process's lock is free. Its file is there only meanwhile. Raises RecordError where there can't be one."""
    path = folder / "records" / f"{name}.lock"
    make_folder(path.parent)
    if _is_held(path):
        waits()
    with ExitStack() as stack:
        try:
            stack.enter_context(opened_locked(path, os.O_RDWR | os.O_CREAT, fcntl.LOCK_EX))
            # while it is locked: who waits for it sees that it is gone, and makes another
            stack.callback(path.unlink, missing_ok=True)
        except LocksFail:
            path.unlink(missing_ok=True)
            stack.enter_context(_held_by_name(path.with_suffix(".held"), waits))
        yield


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


@contextmanager
def _held_by_name(path: Path, waits: Callable[[], None]) -> Iterator[None]:
    """Hold what a file says is held, whose text is the name of the holder's process."""
    own, ended = process_name(), threading.Event()
    _take(path, own, waits)

    def sign() -> None:
        while not ended.wait(SIGN_SECONDS):
            with suppress(OSError):
                os.utime(path)

    signs = threading.Thread(target=sign, daemon=True)
    signs.start()
    try:
        yield
    finally:
        ended.set()
        signs.join()
        with suppress(OSError):
            if path.read_text() == own:
                path.unlink()


def _take(path: Path, own: str, waits: Callable[[], None]) -> None:
    """Make the file that says who holds it, as soon as its holder has let go of it, is dead, or has been silent for too long.
    Raises RecordError where it can't be made."""
    last, since = None, time.monotonic()
    while True:
        try:
            with path.open("x") as file:
                file.write(own)
            return
        except FileExistsError:
            pass
        except OSError as error:
            raise RecordError(f"{path} can't be made ({error.strerror}); what is recorded is safe") from error
        with suppress(FileNotFoundError):
            sign = path.read_text(), path.stat().st_mtime_ns
            if last is None:
                waits()
            if sign != last:
                last, since = sign, time.monotonic()
            if is_dead(sign[0]) or time.monotonic() - since > SILENT_SECONDS:
                path.unlink(missing_ok=True)
                continue
        time.sleep(LOOK_SECONDS)
