"""Append-only JSON lines that survive a kill and several writers at once.

Every append takes an exclusive `flock`, reads what other processes added, drops records whose key is already there,
writes the lines with one `write` and syncs them to the disk. A process killed in the middle of that write leaves
a last line without a newline: the next append moves it to `FILE.torn` and goes on. Any other line that can't be read
is an error that names file and line; nothing is repaired by guessing.

The lines of a finished study may lie compressed in `FILE.xz`, read before those of FILE itself (`RecordFile.archive`).
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import lzma
import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.core.errors import UserError
from harness.study.schema import KEYS, REQUIRED, SCHEMA

Record = dict[str, Any]


class RecordError(UserError):
    """A record file that can't be read on: nothing more may be written to it."""


@contextmanager
def _locked(fd: int, how: int) -> Iterator[None]:
    fcntl.flock(fd, how)
    try:
        yield
    finally:
        fcntl.flock(fd, fcntl.LOCK_UN)


def _write(fd: int, lines: bytes, path: Path) -> None:
    """Write lines in one piece and sync them. Raises RecordError where the disk doesn't take them, as when it is full."""
    try:
        written = os.write(fd, lines)
        os.fsync(fd)
    except OSError as error:
        raise RecordError(f"{path}: can't append ({error.strerror}); what is recorded is safe") from error
    if written != len(lines):
        raise RecordError(f"{path}: the disk took only a part, is it full? What is recorded is safe")


def _finite(value: Any) -> Any:
    """Return `value` with NaN and infinities as None: they aren't JSON, and a reader elsewhere would stumble on them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value


def _line(data: Record) -> bytes:
    """Return a record as its line of JSON, the newline included."""
    return (json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False) + "\n").encode()


def _signature(path: Path) -> tuple[int, int] | None:
    """Return what changes when a file is replaced, its inode and time; None where there is no file."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns


class RecordFile:
    """One file of records of one kind ("runs", "samples", "cells", … see `harness.study.schema`).

    Reading never changes the file. Lines already read are kept in memory and only what is new is read again.
    """

    def __init__(self, path: Path, kind: str) -> None:
        self.path = path
        self.archived = path.with_name(f"{path.name}.xz")
        self.kind = kind
        self._forget()

    def _forget(self) -> None:
        self._records: list[Record] = []
        self._keys: set[tuple[Any, ...]] = set()
        self._offset = 0
        self._line = 0
        self._archive_read: tuple[int, int] | None = None

    def exists(self) -> bool:
        """Return whether anything was ever recorded."""
        return self.path.exists() or self.archived.exists()

    def read(self) -> list[Record]:
        """Return all complete records, oldest first. Raises RecordError at a line that is no record of this kind."""
        try:
            fd = os.open(self.path, os.O_RDONLY)
        except FileNotFoundError:
            self._refresh_archive()
            return list(self._records)
        try:
            with _locked(fd, fcntl.LOCK_SH):
                self._refresh(fd)
        finally:
            os.close(fd)
        return list(self._records)

    def has(self, *key: Any) -> bool:
        """Return whether a record with this key was there at the last read or append."""
        return key in self._keys

    def append(self, record: Any) -> bool:
        """Append one record (a dataclass of `harness.study.schema`). Returns False where its key was there already: nothing is
        written then."""
        return self.append_all([record]) == 1

    def append_all(self, records: Iterable[Any]) -> int:
        """Append records with one lock, one write and one sync; returns how many had a key that wasn't there yet."""
        rows = [_finite(dataclasses.asdict(record)) for record in records]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            with _locked(fd, fcntl.LOCK_EX):
                torn = self._refresh(fd)
                if torn:
                    self._set_aside(fd, torn)
                new = list({self.key(data): data for data in rows if self.key(data) not in self._keys}.values())
                if new:
                    lines = b"".join(map(_line, new))
                    _write(fd, lines, self.path)
                    for data in new:
                        self._take(data)
                    self._offset += len(lines)
                    self._line += len(new)
        finally:
            os.close(fd)
        return len(new)

    def archive(self) -> int:
        """Move all lines into the compressed file; returns how many it holds now. A kill at any moment loses nothing:
        the new archive replaces the old one whole, and lines that are still in both count once."""
        if not self.exists():
            return 0
        fd = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            with _locked(fd, fcntl.LOCK_EX):
                torn = self._refresh(fd)
                if torn:
                    self._set_aside(fd, torn)
                if self._line:
                    self._write_archive()
                    os.ftruncate(fd, 0)
                    self._offset = self._line = 0
        finally:
            os.close(fd)
        return len(self._records)

    def _write_archive(self) -> None:
        partial = self.archived.with_name(f".{self.archived.name}.{os.getpid()}")
        try:
            with open(partial, "wb") as file:
                file.write(lzma.compress(b"".join(map(_line, self._records)), preset=6))
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, self.archived)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise RecordError(f"{self.archived}: can't write ({error.strerror}); what is recorded is safe") from error
        self._archive_read = _signature(self.archived)

    def _refresh_archive(self) -> None:
        """Read the archive if it isn't the one known; then everything in the file itself is new, too."""
        signature = _signature(self.archived)
        if signature == self._archive_read:
            return
        self._forget()
        if signature is not None:
            try:
                text = lzma.decompress(self.archived.read_bytes())
            except (lzma.LZMAError, EOFError) as error:
                raise RecordError(
                    f"{self.archived}: not readable as xz ({error}); restore it (git checkout), or move it aside and "
                    "measure again"
                ) from None
            for number, raw in enumerate(text.split(b"\n")[:-1], 1):
                self._take(self._parse(raw, number, self.archived))
        self._archive_read = signature

    def _refresh(self, fd: int) -> bytes:
        """Read the lines after the last known one; returns the unfinished last line, if there is one."""
        self._refresh_archive()
        os.lseek(fd, self._offset, os.SEEK_SET)
        chunks = []
        while chunk := os.read(fd, 1 << 20):
            chunks.append(chunk)
        text = b"".join(chunks)
        *lines, torn = text.split(b"\n")
        for raw in lines:
            self._take(self._parse(raw, self._line + 1, self.path))
            self._line += 1
            self._offset += len(raw) + 1
        return torn

    def _parse(self, raw: bytes, line: int, path: Path) -> Record:
        where = f"{path}:{line}"
        cure = f"Move it aside (mv {path} {path}.bad), or mend that line, and run the same command again"
        try:
            data = json.loads(raw)
        except ValueError as error:
            raise RecordError(f"{where}: corrupt record, not JSON ({error}). {cure}.") from None
        if not isinstance(data, dict):
            raise RecordError(f"{where}: corrupt record, {type(data).__name__} instead of an object. {cure}.")
        missing = [name for name in REQUIRED[self.kind] if name not in data]
        if missing:
            raise RecordError(f"{where}: corrupt record, {', '.join(missing)} missing. {cure}.")
        if data["schema"] != SCHEMA:
            raise RecordError(f"{where}: record of schema {data['schema']}, this version reads {SCHEMA}. {cure}.")
        return data

    def key(self, data: Record) -> tuple[Any, ...]:
        """Return what tells a line from others: its fields of KEYS; where the kind has none, the whole line."""
        return tuple(data[name] for name in KEYS[self.kind]) if self.kind in KEYS else (_line(data),)

    def _take(self, data: Record) -> None:
        key = self.key(data)
        if key not in self._keys:
            self._keys.add(key)
            self._records.append(data)

    def _set_aside(self, fd: int, torn: bytes) -> None:
        """Move an unfinished last line to FILE.torn; the sample it stood for runs again."""
        aside = os.open(f"{self.path}.torn", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(aside, torn + b"\n")
            os.fsync(aside)
        finally:
            os.close(aside)
        os.ftruncate(fd, self._offset)


class Store:
    """The records of one study: a file of `folder/records/` for each kind: `KIND.jsonl`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

        def file(kind: str) -> RecordFile:
            return RecordFile(folder / "records" / f"{kind}.jsonl", kind)

        self.runs, self.samples, self.cells, self.latency = (file(k) for k in ("runs", "samples", "cells", "latency"))
        self.calibrations, self.mass, self.checks = (file(k) for k in ("calibrations", "mass", "checks"))
        self.perplexity, self.kernels = (file(k) for k in ("perplexity", "kernels"))

    def files(self) -> tuple[RecordFile, ...]:
        """Return all files of the study."""
        return (
            self.runs,
            self.samples,
            self.cells,
            self.latency,
            self.calibrations,
            self.mass,
            self.checks,
            self.perplexity,
            self.kernels,
        )

    def samples_of(self) -> dict[str, list[Record]]:
        """Return the sample records by cell id, each list by sample index."""
        by_cell: dict[str, list[Record]] = {}
        for record in self.samples.read():
            by_cell.setdefault(record["cell"], []).append(record)
        for records in by_cell.values():
            records.sort(key=lambda r: r["index"])
        return by_cell

    def latest_cells(self) -> dict[str, Record]:
        """Return the last state of every cell, by cell id."""
        return {record["cell"]: record for record in self.cells.read()}
