"""Data files that a task reads: in the user's folder, or downloaded once and stored below the working folder."""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import urllib.request
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from harness.core.errors import UserError
from harness.core.files import write_atomically
from harness.core.input_files import input_file, input_folder

DOWNLOADS = Path(".cache/data")
"""Where downloads are stored, below the working folder."""
SECONDS = 10
"""How long a server may be silent."""


@dataclass(frozen=True)
class DataFile:
    """A file of others: what it holds, the names under which it is distributed, and where it comes from."""

    description: str
    names: tuple[str, ...]
    url: str


def locate(file: DataFile, folder: str | None, needed_by: str) -> Path:
    """Return the path of a file in `folder` (data.dir); without a folder that of the download, made now if it isn't there yet.

    Raises UserError that names the file and its source where it can't be had: nothing stands in for it.
    """
    if folder is not None:
        if path := find(file.names, folder):
            return path
        raise UserError(
            f"{needed_by} needs {file.description}, and data.dir={folder} has no {' or '.join(file.names)}: "
            f"get it from {file.url}"
        )
    path = DOWNLOADS / file.names[0]
    if not path.is_file():
        _download(file, path, needed_by)
    return path


def find(names: tuple[str, ...], folder: str) -> Path | None:
    """Return the path of the first of `names` that `folder` has. Raises UserError where there is no such folder, or where that
    is no file to read."""
    root = input_folder("data.dir", folder, "give the folder of the tasks' data files")
    path = next((root / name for name in names if os.path.lexists(root / name)), None)
    return None if path is None else input_file("data.dir", str(path), "take it out, or put the file there")


def _download(file: DataFile, path: Path, needed_by: str) -> None:
    """Fetch a file into `path`, whole or not at all. Raises UserError where it can't be had."""

    def fetch(target: BinaryIO) -> None:
        try:
            with urllib.request.urlopen(file.url, timeout=SECONDS) as answer:
                shutil.copyfileobj(answer, target)
                promised, received = answer.headers.get("Content-Length"), target.tell()
            if promised is not None and received != int(promised):  # copying in pieces doesn't notice
                raise OSError(f"{received} bytes of {promised} came")
        except (OSError, http.client.HTTPException) as error:  # URLError is an OSError; so is a full disk
            raise UserError(
                f"{needed_by} needs {file.description}, and {file.url} can't be read ({error}): download it where there is a "
                f"network and name its folder, data.dir=FOLDER (the file there may be called {' or '.join(file.names)})"
            ) from None

    write_atomically(path, fetch)


def short_hash(path: Path) -> str:
    """Return sha256 (8 digits) of the file's content, read again only where the file has changed.

    It is of the bytes: such files are as others distribute them, and never written anew.
    """
    return _short_hash(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=32)
def _short_hash(path: Path, _: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:8]
