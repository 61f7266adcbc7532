"""Files of others that a task reads: in the user's folder, or downloaded once and kept below the working folder."""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import urllib.request
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from harness.core.errors import UserError

KEPT = Path(".cache/data")
"""Where downloads are kept, below the working folder."""
SECONDS = 60
"""How long a server may be silent."""


@dataclass(frozen=True)
class DataFile:
    """What the file holds, the names under which it is distributed, and where it comes from."""

    what: str
    names: tuple[str, ...]
    url: str


def locate(file: DataFile, folder: str | None, needed_by: str) -> Path:
    """The file in `folder` (data.dir); without a folder the download, made now if it isn't there yet.

    Raises UserError that names the file and its source where it can't be had: nothing stands in for it.
    """
    if folder is not None:
        if found := find(file.names, folder):
            return found
        raise UserError(
            f"{needed_by} needs {file.what}, and data.dir={folder} has no {' or '.join(file.names)}: get it from {file.url}"
        )
    kept = KEPT / file.names[0]
    if not kept.is_file():
        _download(file, kept, needed_by)
    return kept


def find(names: tuple[str, ...], folder: str) -> Path | None:
    """The first of `names` that `folder` has. Raises UserError where there is no such folder."""
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise UserError(f"data.dir={folder}: no such folder; give the folder of the tasks' data files")
    return next((root / name for name in names if (root / name).is_file()), None)


def _download(file: DataFile, kept: Path, needed_by: str) -> None:
    """Fetch into `kept` in one step: a reader sees the whole file or none."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    temporary = kept.with_name(f".{kept.name}.{os.getpid()}")
    try:
        with urllib.request.urlopen(file.url, timeout=SECONDS) as answer, open(temporary, "wb") as target:
            shutil.copyfileobj(answer, target)
            promised, came = answer.headers.get("Content-Length"), target.tell()
        if promised is not None and came != int(promised):  # copying in pieces doesn't notice
            raise OSError(f"{came} bytes of {promised} came")
        os.replace(temporary, kept)
    except (OSError, http.client.HTTPException) as error:  # URLError is an OSError; so is a full disk
        raise UserError(
            f"{needed_by} needs {file.what}, and {file.url} can't be read ({error}): download it where there is a network "
            f"and name its folder, data.dir=FOLDER (the file there may be called {' or '.join(file.names)})"
        ) from None
    finally:
        temporary.unlink(missing_ok=True)


def short_hash(path: Path) -> str:
    """sha256 (8 digits) of the file's content, read again only where the file has changed."""
    return _short_hash(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=32)
def _short_hash(path: Path, _: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:8]
