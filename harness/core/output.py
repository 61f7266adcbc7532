"""Whether what a command is to write can be written: asked before hours of work, and without leaving anything there."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from harness.core.errors import UserError

WRITTEN = (".csv", ".png", ".jsonl", ".json", ".safetensors")
"""Ends of the names of files that are written into the folders of studies, of their records and of trained weights."""


def check_output(setting: str, folder: Path, *below: str) -> None:
    """Raise UserError, naming the setting, where no file could be written into a folder and those `below` it. They need not be
    there; nothing is left behind."""
    for path in (folder, *(folder / name for name in below)):
        if reason := _why_not(path):
            raise UserError(f"{setting}: {path} can't be written to ({reason}); name another folder, or make it writable")


def check_own_output(setting: str, folder: object) -> None:
    """Raise UserError where the folder that a job's setting names, if it does, can't be written to."""
    if folder is not None:
        check_output(f"{setting}={folder}", Path(str(folder)).expanduser())


def _why_not(folder: Path) -> str | None:
    """Return why no file could be written into a folder; None where one could."""
    there = folder
    while not os.path.lexists(there) and there != there.parent:
        there = there.parent
    if not os.path.isdir(there):
        return f"{there} is no folder" if there != folder else "it is no folder"
    try:
        with tempfile.TemporaryDirectory(prefix=".can-be-written-", dir=there) as probe:
            Path(probe, folder.relative_to(there)).mkdir(parents=True, exist_ok=True)
        if there == folder:
            return _taken(folder)
    except OSError as error:
        return error.strerror or str(error)
    return None


def _taken(folder: Path) -> str | None:
    """Return which name of a file that is to be written is taken by what can't be replaced; None where none is."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(WRITTEN):
                if entry.is_dir():
                    return f"{entry.name} in it is a folder"
                if entry.name.endswith(".jsonl") and not os.access(entry.path, os.W_OK):
                    return f"{entry.name} in it may not be written"
    return None
