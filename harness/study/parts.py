"""Folders of records that one process alone writes: `records/parts/HOST-PROCESS-START-N/`, a file for each kind in it.

Each worker of a launcher has one (`own_parts`), and so has any process where locks don't work: a file that one process writes
needs no lock to be right. Every reader of a study sees the parts beside the study's own files, into which
`harness.study.joining` joins those that have ended. A part has ended once its process has said so by the file `done`, or is
known to be dead: it is no more on this host, or has written nothing for a day on another one.
"""

from __future__ import annotations

import itertools
import os
import random
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

from harness.core.partial_files import ABANDONED_SECONDS, host_id, is_running
from harness.study.record_io import RecordError, make_folder, unreadable

PARTS = "parts"
"""The folder of the parts, below that of the records."""
DONE = "done"
"""The file that says that a part has ended."""
PROCESS = re.compile(r"(?P<host>[0-9a-f]{12})-(?P<process>\d+)-(?P<start>\d+)")
"""The name of a process: its host, its number there, and when it began."""
NAME = re.compile(rf"{PROCESS.pattern}-\d+")
"""The name of a part: its process, and which of its parts it is."""
CLAIM = ".claim"
"""The end of the name of a file by which a process says that it changes the study's own files."""
PATIENCE_SECONDS = 20.0
"""How long a process waits for another one that changes the study's own files."""
_NUMBERS = itertools.count()
_CLAIMS: set[Path] = set()
"""The claims that this process holds."""


class Busy(RecordError):
    """Another process changes the study's own files, and goes on with it."""


@dataclass
class OwnParts:
    """The parts that a block of `own_parts` writes. always: whether all that is recorded in it goes into parts; else only what
    goes where locks don't work. parts: by the folder of a study's records."""

    always: bool
    parts: dict[Path, Path] = field(default_factory=dict)

    @property
    def studies(self) -> list[Path]:
        """Return the folders of the studies that have a part of this block."""
        return [records.parent for records in self.parts]

    def part(self, records: Path) -> Path:
        """Return the folder of this block's part of a study, which is made by the first record in it."""
        records = records.absolute()
        return self.parts.setdefault(records, records / PARTS / f"{process_name()}-{next(_NUMBERS)}")

    def end(self) -> None:
        """Say that nothing more is written into the parts of this block."""
        for part in self.parts.values():
            with suppress(OSError):  # nothing was written, or the disk is full: the end of the process says the same
                (part / DONE).touch()


_OF_PROCESS = OwnParts(always=False)
_OWN: ContextVar[OwnParts] = ContextVar("the parts that this block writes")


def written_parts() -> OwnParts:
    """Return the parts of the block of `own_parts` that this is called in; outside of any, those of the process."""
    return _OWN.get(_OF_PROCESS)


@contextmanager
def own_parts(*, always: bool) -> Iterator[OwnParts]:
    """Have what is recorded inside go into parts of the block's own, `always` or only where locks don't work; they have ended
    once it is left."""
    own = OwnParts(always)
    token = _OWN.set(own)
    try:
        yield own
    finally:
        _OWN.reset(token)
        own.end()


def parts_in(records: Path) -> tuple[Path, ...]:
    """Return the parts that lie in the folder of a study's records, by name. Raises RecordError where they can't be listed."""
    try:
        with os.scandir(records / PARTS) as entries:
            names = sorted(entry.name for entry in entries if NAME.fullmatch(entry.name) and entry.is_dir())
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise unreadable(records / PARTS, error) from error
    return tuple(records / PARTS / name for name in names)


def has_ended(part: Path) -> bool:
    """Return whether nothing more is written into a part."""
    return (part / DONE).exists() or _is_left(part)


@contextmanager
def alone(records: Path) -> Iterator[None]:
    """Let no other process change a study's own files, but for those that append with the lock; wait for whoever does.

    It holds where locks don't work too: each says that it begins by a file of its own, and only then looks for others. Of two
    that begin at once, one at least sees the other, and waits. Raises Busy where that takes too long, RecordError where the
    file can't be made.
    """
    own, until = records / PARTS / f"{process_name()}-{next(_NUMBERS)}{CLAIM}", time.monotonic() + PATIENCE_SECONDS
    pauses = random.Random(own.name)  # not all the same, or two would go on to meet
    _CLAIMS.add(own)
    try:
        while not _claim(own):
            if time.monotonic() > until:
                raise Busy(f"{records}: another process changes the records now")
            time.sleep(pauses.uniform(0.01, 0.2))
        yield
    finally:
        _CLAIMS.discard(own)
        with suppress(OSError):
            own.unlink(missing_ok=True)
            own.parent.rmdir()  # where nothing else is in it


def _claim(own: Path) -> bool:
    """Say that this process changes the study's own files, unless another one does; return whether it has said so."""
    try:
        make_folder(own.parent)
        own.touch()
        if not _is_claimed_beside(own):
            return True
        own.unlink()
    except FileNotFoundError:  # another one has just removed the empty folder
        pass
    except OSError as error:
        raise RecordError(f"{own.parent} can't be written to ({error.strerror or error}); what is recorded is safe") from error
    return False


def _is_claimed_beside(own: Path) -> bool:
    """Return whether another process says that it changes the study's own files. Claims that are left are removed."""
    others = [path for path in own.parent.glob(f"*{CLAIM}") if path != own]
    left = [path for path in others if path not in _CLAIMS and _is_left(path)]
    for path in left:
        path.unlink(missing_ok=True)
    return len(others) > len(left)


def process_name() -> str:
    """Return what tells this process from all others, of any host, and from later ones of the same number."""
    return f"{host_id()}-{os.getpid()}-{start_of(os.getpid())}"


def is_dead(name: str) -> bool:
    """Return whether the process of this host that a name begins with (`process_name`) is no more; False for what is no such
    name, and for processes of other hosts, of which that isn't known."""
    match = PROCESS.match(name)
    if match is None or match["host"] != host_id():
        return False
    process = int(match["process"])
    return not is_running(process) or start_of(process) != int(match["start"])


def _is_left(path: Path) -> bool:
    """Return whether the process of a part, or a claim, is dead, or of another host and hasn't written to it for a day."""
    if path.name.startswith(f"{process_name()}-"):  # a claim that couldn't be removed
        return path.name.endswith(CLAIM)
    if path.name.startswith(host_id()):
        return is_dead(path.name)
    try:
        latest = max(entry.stat().st_mtime for entry in (path, *(path.iterdir() if path.is_dir() else ())))
    except OSError:  # it has just gone, or can't be asked
        return False
    return time.time() - latest > ABANDONED_SECONDS


def start_of(process: int) -> int:
    """Return when a process of this host began, in ticks since the start of the system; 0 where that isn't known."""
    with suppress(OSError, ValueError, IndexError):  # no /proc: not Linux
        return int(Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()[19])
    return 0
