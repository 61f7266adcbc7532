"""LongBench's files: data.zip of the hub, or the jsonl files in it in a folder that the user names; no copy is shipped."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from harness.core.errors import UserError

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
        """Return the content of a file, None if it isn't there."""
        if self.path.is_dir():
            return (self.path / file).read_bytes() if (self.path / file).is_file() else None
        with zipfile.ZipFile(self.path) as archive:
            members = [name for name in archive.namelist() if name.rpartition("/")[2] == file]
            return archive.read(members[0]) if members else None


@lru_cache(maxsize=4)
def find(folder: str | None) -> Source:
    """Return what `data.dir` names; None: the hub's data.zip, downloaded once. Raises UserError where there is none."""
    if folder is None:
        path = _from_hub()
        return Source(path, f"hub {path.parent.name[:8]}")
    path = Path(folder).expanduser()
    if path.is_dir() or (path.suffix == ".zip" and zipfile.is_zipfile(path)):
        return Source(path, path.resolve().stem if path.is_file() else path.resolve().name)
    raise UserError(f"data.dir={folder}: no such folder; give one with LongBench's jsonl files, or its data.zip ({WHERE})")


def _from_hub() -> Path:
    try:
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(HUB, "data.zip", repo_type="dataset"))  # …/snapshots/COMMIT/data.zip
    except Exception as error:
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(
            f"can't load LongBench from the hub: {first} — without network, name its folder: data.dir=FOLDER ({WHERE})"
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
    try:
        row: Any = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where}: no JSON ({error}); load the file again: {WHERE}") from None
    row = row if isinstance(row, dict) else {}
    wrong = [name for name, kind in FIELDS.items() if not isinstance(row.get(name), kind)]
    if not wrong and not (row["answers"] and all(isinstance(answer, str) for answer in row["answers"])):
        wrong = ["answers"]
    if wrong:
        raise UserError(f"{where}: {', '.join(wrong)} missing or of the wrong kind; load the file again: {WHERE}")
    classes = row.get("all_classes") or ()
    return Row(row["context"], row["input"], tuple(row["answers"]), tuple(map(str, classes)), row["length"])
