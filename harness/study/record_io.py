"""Opening, locking and reading the files of records: what is no readable file ends in one line that names it."""

from __future__ import annotations

import fcntl
import lzma
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.core.errors import UserError

RESTORE = "restore it (a backup, git checkout), or move it aside and measure again"
"""What helps where a whole file is lost."""


class RecordError(UserError):
    """A record file that can't be read on: nothing more may be written to it."""


@contextmanager
def locked(fd: int, how: int) -> Iterator[None]:
    """Hold the lock of an open file; how: fcntl.LOCK_SH to read, fcntl.LOCK_EX to write."""
    fcntl.flock(fd, how)
    try:
        yield
    finally:
        fcntl.flock(fd, fcntl.LOCK_UN)


@contextmanager
def opened_locked(path: Path, flags: int, how: int) -> Iterator[int]:
    """Open a file of records, hold its lock, and yield its descriptor. Where another file has taken its place while the lock
    was waited for (`harness.study.pruning`), it is that one. Raises as `open_file` does."""
    while True:
        fd = open_file(path, flags)
        try:
            with locked(fd, how):
                if _is_at(fd, path):
                    yield fd
                    return
        finally:
            os.close(fd)


def _is_at(fd: int, path: Path) -> bool:
    """Return whether an open file is still what lies at a path."""
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


def write_lines(fd: int, lines: bytes, path: Path) -> None:
    """Write lines in one piece and sync them. Raises RecordError where the disk doesn't take them, as when it is full."""
    try:
        written = os.write(fd, lines)
        os.fsync(fd)
    except OSError as error:
        raise RecordError(f"{path}: can't append ({error.strerror}); what is recorded is safe") from error
    if written != len(lines):
        raise RecordError(f"{path}: the disk took only a part, is it full? What is recorded is safe")


def signature_of(path: Path) -> tuple[int, int] | None:
    """Return what changes when a file is replaced, its inode and time; None where there is no file."""
    try:
        status = path.stat()
    except FileNotFoundError:
        if path.is_symlink():
            raise RecordError(f"{path} is a link to a file that is not there: {RESTORE}") from None
        return None
    except OSError as error:
        raise unreadable(path, error) from error
    if not stat.S_ISREG(status.st_mode):
        raise RecordError(f"{path} is no file: {RESTORE}")
    return status.st_ino, status.st_mtime_ns


def unreadable(path: Path, error: OSError) -> RecordError:
    """Return the error of a file that the system doesn't let be read."""
    return RecordError(f"{path} can't be read ({error.strerror or error}): {RESTORE}")


def open_file(path: Path, flags: int) -> int:
    """Open a file of records and return its descriptor. Raises RecordError for what is no plain file, or can't be opened;
    FileNotFoundError where there is nothing."""
    try:
        fd = os.open(path, flags | os.O_NONBLOCK, 0o644)  # what isn't a file must not be waited for
    except FileNotFoundError:
        if path.is_symlink():
            raise RecordError(f"{path} is a link to a file that is not there: {RESTORE}") from None
        raise
    except OSError as error:
        raise unreadable(path, error) from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise RecordError(f"{path} is no file: {RESTORE}")
    return fd


def decompress(path: Path) -> bytes:
    """Return what an archive holds. Raises RecordError where it is damaged at any place, what follows its end included."""
    try:
        compressed, content = path.read_bytes(), []
        while compressed:
            decompressor = lzma.LZMADecompressor(lzma.FORMAT_XZ)
            content.append(decompressor.decompress(compressed))
            if not decompressor.eof:
                raise EOFError("it ends too early")
            compressed = decompressor.unused_data
        if not content:
            raise EOFError("it is empty")
    except (lzma.LZMAError, EOFError) as error:
        raise RecordError(f"{path}: not readable as xz ({error}): {RESTORE}") from None
    except OSError as error:
        raise unreadable(path, error) from error
    return b"".join(content)
