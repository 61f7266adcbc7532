"""Opening, locking and reading the files of records: what is no readable file ends in one line that names it."""

from __future__ import annotations

import errno
import fcntl
import lzma
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from harness.core.errors import UserError

RESTORE = "restore it (a backup, git checkout), or move it aside and measure again"
"""What helps where a whole file is lost."""
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
"""What `flock` says where a file system has no locks, as one over a network without its lock service."""
FULL = (errno.ENOSPC, errno.EDQUOT)
_SAID: set[Path] = set()
"""Folders of which this process has said that locks don't work there."""


class RecordError(UserError):
    """A record file that can't be read on: nothing more may be written to it."""


class LocksFail(RecordError):
    """A file that can't be locked as locks don't work in its folder."""


@contextmanager
def opened_locked(path: Path, flags: int, how: int, *, needed: bool = True) -> Iterator[int]:
    """Open a file of records, hold its lock, and yield its descriptor. Where another file has taken its place while the lock
    was waited for (`harness.study.pruning`), it is that one. how: fcntl.LOCK_SH to read, fcntl.LOCK_EX to write.

    Where locks don't work in its folder, that is said once. needed: whether LocksFail is raised then; else it goes on without
    one, as whoever reads can, or holds the study by `harness.study.parts.alone`. Raises as `open_file` does.
    """
    while True:
        fd = open_file(path, flags)
        try:
            held = _lock(fd, how, path)
            try:
                if needed and not held:
                    raise LocksFail(f"{path.parent}: locks don't work there")
                if _is_at(fd, path):
                    yield fd
                    return
            finally:
                if held:
                    fcntl.flock(fd, fcntl.LOCK_UN)
        finally:
            os.close(fd)


def _lock(fd: int, how: int, path: Path) -> bool:
    """Wait for the lock of an open file. Returns False, and says so, where locks don't work. Raises RecordError for any other
    failure."""
    try:
        fcntl.flock(fd, how)
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise RecordError(f"{path} can't be locked ({error.strerror or error}); what is recorded is safe") from error
        _say_without_locks(path.parent, error)
        return False
    return True


def _say_without_locks(folder: Path, error: OSError) -> None:
    if folder.absolute() not in _SAID:
        _SAID.add(folder.absolute())
        print(
            f"warning: {folder}: locks don't work there ({error.strerror or error}): each process writes records of its own "
            "in parts/, joined when it ends; nothing is lost",
            file=sys.stderr,
        )


def _is_at(fd: int, path: Path) -> bool:
    """Return whether an open file is still what lies at a path."""
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


def write_lines(fd: int, lines: bytes, path: Path) -> None:
    """Write lines at the end in one piece and sync them. Raises RecordError where the disk doesn't take them, as when it is
    full: the file is then as long as before."""
    before = os.fstat(fd).st_size
    try:
        written = os.write(fd, lines)
        os.fsync(fd)
        if written != len(lines):
            raise RecordError(f"{path}: the disk took only a part, is it full? What is recorded is safe")
    except (OSError, RecordError) as error:
        with suppress(OSError):  # what is left of a line then is set aside by the next append
            os.ftruncate(fd, before)
        if isinstance(error, RecordError):
            raise
        raise RecordError(f"{path}: can't append ({error.strerror}); what is recorded is safe") from error


def set_aside(path: Path, torn: bytes) -> None:
    """Add an unfinished last line of a file to FILE.torn. Raises RecordError where it can't be written."""
    try:
        aside = os.open(f"{path}.torn", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(aside, torn + b"\n")
            os.fsync(aside)
        finally:
            os.close(aside)
    except OSError as error:
        raise RecordError(f"{path}.torn can't be written ({error.strerror}); what is recorded is safe") from error


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


def make_folder(folder: Path) -> None:
    """Make a folder for records. Raises RecordError where it can't be."""
    error: OSError | None = None
    for _ in range(10):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            return
        except (FileNotFoundError, FileExistsError) as gone:  # perhaps another process has just removed it, as it was empty
            error = gone
        except OSError as refused:
            error = refused
            break
    assert error is not None
    raise RecordError(f"{folder} can't be made ({error.strerror or error}): records go into that folder") from error


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
        if error.errno in FULL:
            raise RecordError(f"{path} can't be made ({error.strerror}); what is recorded is safe") from error
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
