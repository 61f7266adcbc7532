"""Files that are written whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from harness.core.errors import UserError
from harness.core.partial_files import partial_path, remove_abandoned


def writable_folder(folder: Path) -> Path:
    """Make a folder for what hours of work will give, and return it. Raises UserError where nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise UserError(f"{folder} can't be written to ({error.strerror or error}): name another folder") from error
    return folder


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> Path:
    """Let `write` fill a file beside `path` that takes its place once it is on the disk, with the permissions of any new file.

    What killed processes were writing in that folder is removed. Returns `path`. Raises UserError where it can't be written;
    what was at `path` is then still there.
    """
    partial = partial_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned([path.parent])
        with partial.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise UserError(f"{path} can't be written ({error.strerror or error}): make room, or name another folder") from error
    finally:
        with suppress(OSError):
            partial.unlink()
    return path


@contextmanager
def partial_folder(path: Path) -> Iterator[Path]:
    """Make a folder beside `path` for files that belong together, and remove it, and what is left in it, at the end.

    What killed processes were writing beside `path` is removed. Raises UserError where it can't be made.
    """
    folder = partial_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned([path.parent])
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"{path} can't be written ({error.strerror or error}): make room, or name another folder") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
