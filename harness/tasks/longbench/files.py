"""LongBench's files: data.zip of the hub, or the jsonl files in it in a folder that the user names; no copy is shipped."""

from __future__ import annotations

import hashlib
import os
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from harness.core.errors import UserError
from harness.core.hub import find_hub, hub_error
from harness.core.input_files import parse_json, read_bytes

HUB = "THUDM/LongBench"
WHERE = f"data.zip of https://huggingface.co/datasets/{HUB} holds all"

FIELDS = {"context": str, "input": str, "answers": list, "length": int}
"""What every line has, and of which type; `all_classes` is null outside the classification tasks."""


@dataclass(frozen=True)
class Row:
    """One line of a file; `length` in words (characters in Chinese), as LongBench counts them for the buckets of E."""

    context: str
    input: str
    answers: tuple[str, ...]
    classes: tuple[str, ...]
    length: int


@dataclass(frozen=True)
class Source:
    """Where files are read from: a folder, or data.zip. `name` is what rows call it."""

    path: Path
    name: str

    def read(self, file: str) -> bytes | None:
        """Return the content of a file, None if it isn't there. Raises UserError where it can't be read."""
        if self.path.is_dir():
            return read_bytes(self.path / file, f"; {WHERE}") if (self.path / file).is_file() else None
        try:
            with zipfile.ZipFile(self.path) as archive:
                members = [name for name in archive.namelist() if name.rpartition("/")[2] == file]
                return archive.read(members[0]) if members else None
        except (OSError, zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError) as error:  # as zipfile raises them
            raise UserError(f"{self.path}: {file} in it can't be read ({error}); load it again: {WHERE}") from None


@lru_cache(maxsize=4)
def find(folder: str | None) -> Source:
    """Return what `data.dir` names; None: the hub's data.zip, downloaded once. Raises UserError where there is none."""
    if folder is None:
        path = _from_hub()
        return Source(path, f"hub {path.parent.name[:8]}")
    path = Path(folder).expanduser()
    if os.path.isdir(path) or (path.suffix == ".zip" and zipfile.is_zipfile(path)):
        return Source(path, path.resolve().stem if path.is_file() else path.resolve().name)
    raise UserError(f"data.dir={folder}: no such folder; give one with LongBench's jsonl files, or its data.zip ({WHERE})")


def _from_hub() -> Path:
    offline = find_hub()
    try:
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(HUB, "data.zip", repo_type="dataset"))  # …/snapshots/COMMIT/data.zip
    except Exception as error:
        raise UserError(
            f"can't load LongBench: {hub_error(error, offline)}; without network, name its folder: data.dir=FOLDER ({WHERE})"
        ) from None


@dataclass(frozen=True)
class Contents:
    """All the files of one benchmark in a source: a digest over them, and the lines in each that is there."""

    digest: str
    lines: Mapping[str, int]


@lru_cache(maxsize=8)
def contents(source: Source, files: Iterable[str]) -> Contents:
    """Return what a source holds of `files` (a tuple of names). Raises UserError if it is none of them.

    The digest is of each file as it is distributed, packed into a zip or not.
    """
    digest, lines = hashlib.sha256(), {}
    for file in files:
        if (raw := source.read(file)) is not None:
            digest.update(file.encode() + b"\0" + hashlib.sha256(raw).digest())
            lines[file] = sum(bool(line.strip()) for line in raw.split(b"\n"))
    if not lines:
        raise UserError(f"{source.path} holds none of the files of this benchmark ({', '.join(files)}); {WHERE}")
    return Contents(digest.hexdigest()[:12], lines)


@lru_cache(maxsize=2)
def rows(source: Source, file: str) -> tuple[Row, ...]:
    """Return the lines of a file. Raises UserError that names the file, its origin and the line that can't be read."""
    raw = source.read(file)
    if raw is None:
        raise UserError(f"{file} is not in {source.path}; {WHERE}")
    parsed = [_row(line, f"{source.path / file}:{number}") for number, line in enumerate(raw.split(b"\n"), 1) if line.strip()]
    if not parsed:
        raise UserError(f"{source.path / file} is empty; {WHERE}")
    return tuple(parsed)


def _row(line: bytes, where: str) -> Row:
    row: Any = parse_json(line, where, f"; load the file again: {WHERE}")
    row = row if isinstance(row, dict) else {}
    wrong = [name for name, kind in FIELDS.items() if not isinstance(row.get(name), kind)]
    if not wrong and not (row["answers"] and all(isinstance(answer, str) for answer in row["answers"])):
        wrong = ["answers"]
    if wrong:
        raise UserError(f"{where}: {', '.join(wrong)} missing or of the wrong kind; load the file again: {WHERE}")
    classes = row.get("all_classes") or ()
    return Row(row["context"], row["input"], tuple(row["answers"]), tuple(map(str, classes)), row["length"])
