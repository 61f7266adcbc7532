"""Files that are being written: their names say which process writes them, so that what a killed one leaves is removed.

Several processes, of several hosts, may write into one folder. A file is removed where its writer is known to be dead: a
process of this host that is no more, or any process that wrote nothing to it for a day.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import time
from collections.abc import Iterable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

ABANDONED_SECONDS = 24 * 3600
"""Seconds without a write after which a file of another host counts as left behind: its processes can't be asked about."""
LONGEST_STEM = 200
"""Bytes of the final name that are kept: a folder takes names of 255."""
NAME = re.compile(r"\..+\.(?P<host>[0-9a-f]{12})-(?P<process>\d+)\.partial")
"""The name of a file that is being written: a dot, the final name, the host and the process."""


def partial_path(path: Path) -> Path:
    """Return where this process writes what is to become `path`, beside it."""
    stem = path.name.encode()[:LONGEST_STEM].decode(errors="ignore")
    return path.with_name(f".{stem}.{host_id()}-{os.getpid()}.partial")


def remove_abandoned(folders: Iterable[Path]) -> None:
    """Delete the files, and folders of files, in `folders` that dead processes were writing, and nothing else. What can't be
    deleted stays."""
    for folder in folders:
        with suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                match = NAME.fullmatch(entry.name)
                if match and _is_abandoned(entry, match["host"], int(match["process"])):
                    _remove(entry)


def _remove(entry: os.DirEntry[str]) -> None:
    """Delete a file or folder, if that can be."""
    if entry.is_dir(follow_symlinks=False):
        shutil.rmtree(entry.path, ignore_errors=True)
        return
    with suppress(OSError):
        os.unlink(entry.path)


def _is_abandoned(entry: os.DirEntry[str], host: str, process: int) -> bool:
    """Return whether nobody writes a file any more."""
    if host == host_id() and not is_running(process):
        return True
    try:
        return time.time() - entry.stat(follow_symlinks=False).st_mtime > ABANDONED_SECONDS
    except OSError:  # its writer has just finished
        return False


def is_running(process: int) -> bool:
    """Return whether a process of this host can still write. One that has ended and was not waited for yet can't."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # another user's
        return True
    with suppress(OSError):  # no /proc: not Linux
        state = Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()[:1]
        return state not in ([b"Z"], [b"X"])
    return True


@lru_cache(maxsize=1)
def host_id() -> str:
    """Return what tells the processes of this host from those of others: 12 hex digits of its name, its boot and its table of
    processes, as containers may share the first two."""
    parts = [platform.node()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]
