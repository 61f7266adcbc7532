"""Append-only JSON lines that survive a kill and several writers at once.

Every append takes an exclusive `flock`, reads what other processes added, drops records whose key is already there,
writes the lines with one `write` and syncs them to the disk. A process killed in the middle of that write leaves
a last line without a newline: the next append moves it to `FILE.torn` and goes on. Any other line that is no record of its
kind (`harness.study.lines`) is an error that names file and line, as is a second one of the same key that says something
else; nothing is repaired by guessing.

The lines of a finished study may lie compressed in `FILE.xz`, read before those of FILE itself (`RecordFile.archive`). It is
written whole, so one without its end is an error.
"""

from __future__ import annotations

import dataclasses
import fcntl
import lzma
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from harness.core.errors import UserError
from harness.core.files import write_atomically
from harness.study.lines import LineError, Record, check_record, parse_line, shown, to_line
from harness.study.record_files import KEYS, RECORDS
from harness.study.record_io import RESTORE, RecordError, decompress, opened_locked, signature_of, unreadable, write_lines

__all__ = ("Record", "RecordError", "RecordFile", "Store")


def _finite(value: Any) -> Any:
    """Return `value` with NaN and infinities as None: they aren't JSON, and a reader elsewhere would stumble on them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value


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
        self._places: list[str] = []
        self._by_key: dict[tuple[Any, ...], int] = {}
        self._torn = False
        self._offset = 0
        self._line = 0
        self._archive_read: tuple[int, int] | None = None
        self._inode: int | None = None

    def exists(self) -> bool:
        """Return whether anything was ever recorded."""
        return os.path.lexists(self.path) or os.path.lexists(self.archived)

    @property
    def unfinished(self) -> str:
        """Return "FILE:LINE" of a last line that was unfinished at the last read: a kill, or a copy that was cut. Else ""."""
        return f"{self.path}:{self._line + 1}" if self._torn else ""

    def place(self, position: int) -> str:
        """Return "FILE:LINE" of the record at this position of what `read` returns."""
        return self._places[position]

    def read(self) -> list[Record]:
        """Return all complete records, oldest first. Raises RecordError at a line that is no record of this kind."""
        try:
            with opened_locked(self.path, os.O_RDONLY, fcntl.LOCK_SH) as fd:
                self._refresh(fd)
        except FileNotFoundError:
            if self._inode is not None:  # it was there at the last read
                self._forget()
            self._torn = False
            self._refresh_archive()
        except OSError as error:
            raise unreadable(self.path, error) from error
        return list(self._records)

    def has(self, *key: Any) -> bool:
        """Return whether a record with this key was there at the last read or append."""
        return key in self._by_key

    def append(self, record: Any) -> bool:
        """Append one record (a dataclass of `harness.study.schema`). Returns False where its key was there already: nothing is
        written then."""
        return self.append_all([record]) == 1

    def append_all(self, records: Iterable[Any]) -> int:
        """Append records with one lock, one write and one sync; returns how many had a key that wasn't there yet.

        Raises UserError for a record that no reader would accept: nothing is written then.
        """
        rows = [self._checked(record) for record in records]
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RecordError(f"{self.path.parent} can't be made ({error.strerror}): records go into that folder") from error
        with opened_locked(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, fcntl.LOCK_EX) as fd:
            torn = self._refresh(fd)
            if torn:
                self._set_aside(fd, torn)
            new = list({self.key(data): data for data in rows if self.key(data) not in self._by_key}.values())
            if new:
                lines = b"".join(map(to_line, new))
                write_lines(fd, lines, self.path)
                for data in new:
                    self._line += 1
                    self._take(data, f"{self.path}:{self._line}")
                self._offset += len(lines)
        return len(new)

    def archive(self) -> int:
        """Move all lines into the compressed file; returns how many it holds now. A kill at any moment loses nothing:
        the new archive replaces the old one whole, and lines that are still in both count once."""
        if not self.exists():
            return 0
        with opened_locked(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, fcntl.LOCK_EX) as fd:
            torn = self._refresh(fd)
            if torn:
                self._set_aside(fd, torn)
            if self._line:
                self._write_archive()
                os.ftruncate(fd, 0)
                self._offset = self._line = 0
                self._places = [f"{self.archived}:{number}" for number in range(1, len(self._records) + 1)]
        return len(self._records)

    def _write_archive(self) -> None:
        content = lzma.compress(b"".join(map(to_line, self._records)), preset=6)
        try:
            write_atomically(self.archived, lambda file: file.write(content))
        except UserError as error:
            raise RecordError(f"{error}; what is recorded is safe") from error
        self._archive_read = signature_of(self.archived)

    def _refresh_archive(self) -> None:
        """Read the archive if it isn't the one known; then everything in the file itself is new, too."""
        signature = signature_of(self.archived)
        if signature == self._archive_read:
            return
        self._forget()
        if signature is not None:
            *lines, torn = decompress(self.archived).split(b"\n")
            for number, raw in enumerate(lines, 1):
                self._take(self._parse(raw, number, self.archived), f"{self.archived}:{number}")
            if torn:
                raise RecordError(f"{self.archived}:{len(lines) + 1}: ends within a line: {RESTORE}")
        self._archive_read = signature

    def _refresh(self, fd: int) -> bytes:
        """Read the lines after the last known one; returns the unfinished last line, if there is one. Of a file that has taken
        the place of the known one, or is shorter (`harness.study.pruning`), all of them."""
        status = os.fstat(fd)
        if self._inode not in (None, status.st_ino) or status.st_size < self._offset:
            self._forget()
        self._refresh_archive()
        self._inode = status.st_ino
        os.lseek(fd, self._offset, os.SEEK_SET)
        chunks = []
        while chunk := os.read(fd, 1 << 20):
            chunks.append(chunk)
        text = b"".join(chunks)
        *lines, torn = text.split(b"\n")
        for raw in lines:
            self._take(self._parse(raw, self._line + 1, self.path), f"{self.path}:{self._line + 1}")
            self._line += 1
            self._offset += len(raw) + 1
        self._torn = bool(torn)
        return torn

    def _parse(self, raw: bytes, line: int, path: Path) -> Record:
        try:
            return parse_line(raw, self.kind)
        except LineError as error:
            raise RecordError(f"{path}:{line}: corrupt record, {error}. {self._cure(path)}.") from None

    def _cure(self, path: Path) -> str:
        """Return what helps where a line is damaged. Rows can't do without the process that they come from."""
        if self.kind == "runs":
            return f"Mend that line, or restore {path} (a backup, git checkout)"
        return f"Move it aside (mv {path} {path}.bad), or mend that line, and run the same command again"

    def _checked(self, record: Any) -> Record:
        """Return a record as it is written. Raises UserError where it couldn't be read again."""
        data: Record = _finite(dataclasses.asdict(record))
        try:
            check_record(data, self.kind)
        except LineError as error:
            name = RECORDS[self.kind].__name__
            raise UserError(f"{self.path}: a {name} was measured that can't be recorded, {error}") from None
        return data

    def key(self, data: Record) -> tuple[Any, ...]:
        """Return what tells a line from others: its fields of KEYS; where the kind has none, the whole line."""
        return tuple(data[name] for name in KEYS[self.kind]) if self.kind in KEYS else (to_line(data),)

    def _take(self, data: Record, place: str) -> None:
        position = self._by_key.setdefault(self.key(data), len(self._records))
        if position == len(self._records):
            self._records.append(data)
            self._places.append(place)
        elif self._records[position] != data:
            names = ", ".join(f"{name}={shown(data[name])}" for name in KEYS[self.kind])
            raise RecordError(
                f"{place}: corrupt record, {names} is recorded otherwise in {self._places[position]}. Delete one of the two."
            )

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
        self.perplexity, self.kernels, self.gate_steps = (file(k) for k in ("perplexity", "kernels", "gate_steps"))
        self.arm_densities, self.finetune_steps = file("arm_densities"), file("finetune_steps")

    def files(self) -> tuple[RecordFile, ...]:
        """Return all files of the study."""
        return (
            self.runs,
            self.samples,
            self.cells,
            self.latency,
            self.calibrations,
            self.mass,
            self.arm_densities,
            self.checks,
            self.perplexity,
            self.kernels,
            self.gate_steps,
            self.finetune_steps,
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
