"""A file of records of one kind: append-only JSON lines that survive a kill and several writers at once.

Every append takes an exclusive `flock`, reads what other processes added, drops records whose key is already there,
writes the lines with one `write` and syncs them to the disk. A process killed in the middle of that write leaves
a last line without a newline: the next append moves it to `FILE.torn` and goes on. Any other line that is no record of its
kind (`harness.study.lines`) is an error that names file and line, as is a second one of the same key that says something
else; nothing is repaired by guessing. A file that one process alone writes (`harness.study.parts`) goes without the lock.

The lines of a finished study may lie compressed in `FILE.xz`, read before those of FILE itself (`RecordFile.archive`). It is
written whole, so one without its end is an error.
"""

from __future__ import annotations

import dataclasses
import fcntl
import heapq
import lzma
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.core.errors import UserError
from harness.core.files import write_atomically
from harness.study.lines import LineError, Record, check_record, parse_line, shown, to_line
from harness.study.record_files import KEYS, RECORDS
from harness.study.record_io import (
    RESTORE,
    RecordError,
    decompress,
    make_folder,
    open_file,
    opened_locked,
    set_aside,
    signature_of,
    unreadable,
    write_lines,
)


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
    shared: whether several processes append to it, each with the lock; a part's file is written by one alone.
    """

    def __init__(self, path: Path, kind: str, *, shared: bool = True) -> None:
        self.path, self.shared = path, shared
        self.archived = path.with_name(f"{path.name}.xz")
        self.kind = kind
        self._forget()

    def _forget(self) -> None:
        self._records: list[Record] = []
        self._places: list[str] = []
        self._by_key: dict[tuple[Any, ...], int] = {}
        self._dates: list[str] = []
        self._torn = False
        self._offset = 0
        self._last_line = b""
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

    @property
    def keys(self) -> Iterable[tuple[Any, ...]]:
        """Return the keys of the records that `read` has returned, in their order."""
        return self._by_key

    @property
    def dates(self) -> Sequence[str]:
        """Return for each record that `read` has returned the latest date of the lines of FILE up to it, "" for an archived
        one. Other files' records come between those of this one by it."""
        return self._dates

    def read(self) -> list[Record]:
        """Return all complete records, oldest first. Raises RecordError at a line that is no record of this kind."""
        try:
            with self._opened(os.O_RDONLY, fcntl.LOCK_SH, needed=False) as fd:
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

    def append_all(self, records: Iterable[Any], known: Callable[..., bool] | None = None) -> int:
        """Append records with one lock, one write and one sync; returns how many had a key that wasn't there yet.

        known: whether a key is in another file that counts. Raises UserError for a record that no reader would accept, and
        LocksFail where the file can't be locked: nothing is written then.
        """
        rows = [self._checked(record) for record in records]
        make_folder(self.path.parent)
        with self._opened(os.O_RDWR | os.O_APPEND | os.O_CREAT, fcntl.LOCK_EX) as fd:
            self._refresh_whole_lines(fd)
            new = self._new(rows)
            new = new if known is None else [data for data in new if not known(*self.key(data))]
            if new:
                lines = b"".join(map(to_line, new))
                write_lines(fd, lines, self.path)
                for data in new:
                    self._line += 1
                    self._take(data, f"{self.path}:{self._line}")
                self._offset += len(lines)
                self._last_line = to_line(new[-1])
        return len(new)

    def insert_all(self, records: Sequence[Record]) -> int:
        """Put records that are as they were read, oldest first, among the lines of the file itself, by date: after them where
        these are all older, as is usual; else a file with both takes its place whole. Returns how many weren't there yet.

        For whoever holds the study (`harness.study.parts.alone`). Raises UserError where it can't be written: nothing is
        changed then.
        """
        make_folder(self.path.parent)
        with self._opened(os.O_RDWR | os.O_APPEND | os.O_CREAT, fcntl.LOCK_EX, needed=False) as fd:
            self._refresh_whole_lines(fd)
            if new := self._new(records):
                if not self._dates or self._dates[-1] <= new[0]["date"]:
                    write_lines(fd, b"".join(map(to_line, new)), self.path)
                else:
                    self._replace_among(new)
        return len(new)

    def _replace_among(self, new: Sequence[Record]) -> None:
        """Replace the file by one that has new lines among its own, whose bytes stay as they are."""
        latest, own, others = "", [], []
        for line in self.path.read_bytes().splitlines(keepends=True):
            latest = max(latest, parse_line(line[:-1], self.kind)["date"])
            own.append((latest, line))
        latest = ""
        for data in new:
            latest = max(latest, data["date"])
            others.append((latest, to_line(data)))
        lines = [line for _, line in heapq.merge(own, others, key=lambda pair: pair[0])]
        write_atomically(self.path, lambda file: file.writelines(lines))

    def _new(self, rows: Iterable[Record]) -> list[Record]:
        """Return the rows whose key isn't there yet, the first of each key."""
        by_key: dict[tuple[Any, ...], Record] = {}
        for data in rows:
            key = self.key(data)
            if key not in self._by_key:
                by_key.setdefault(key, data)
        return list(by_key.values())

    def archive(self) -> int:
        """Move all lines into the compressed file; returns how many it holds now. A kill at any moment loses nothing:
        the new archive replaces the old one whole, and lines that are still in both count once. For whoever holds the study
        (`harness.study.parts.alone`)."""
        if not self.exists():
            return 0
        with self._opened(os.O_RDWR | os.O_APPEND | os.O_CREAT, fcntl.LOCK_EX, needed=False) as fd:
            self._refresh_whole_lines(fd)
            if self._line:
                self._write_archive()
                os.ftruncate(fd, 0)
                self._offset, self._line, self._last_line = 0, 0, b""
                self._dates = [""] * len(self._records)
                self._places = [f"{self.archived}:{number}" for number in range(1, len(self._records) + 1)]
        return len(self._records)

    @contextmanager
    def _opened(self, flags: int, how: int, *, needed: bool = True) -> Iterator[int]:
        """Open the file, with its lock where it is shared, and yield its descriptor. Raises as `opened_locked` does."""
        if self.shared:
            with opened_locked(self.path, flags, how, needed=needed) as fd:
                yield fd
            return
        fd = open_file(self.path, flags)
        try:
            yield fd
        finally:
            os.close(fd)

    def _refresh_whole_lines(self, fd: int) -> None:
        """Read what was added, and move an unfinished last line out of the way of what is written next."""
        if torn := self._refresh(fd):
            self._set_aside(fd, torn)

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
                self._take(self._parse(raw, number, self.archived), f"{self.archived}:{number}", archived=True)
            if torn:
                raise RecordError(f"{self.archived}:{len(lines) + 1}: ends within a line: {RESTORE}")
        self._archive_read = signature

    def _refresh(self, fd: int) -> bytes:
        """Read the lines after the last known one; returns the unfinished last line, if there is one. Of a file that has taken
        the place of the known one, all of them: it is another one by its number, by its length, or as the last known line is
        not where it was, since a new file may have the number of one that is gone."""
        inode = os.fstat(fd).st_ino
        if self._inode not in (None, inode) or self._has_moved(fd):
            self._forget()
        self._refresh_archive()
        self._inode = inode
        os.lseek(fd, self._offset, os.SEEK_SET)
        chunks = []
        while chunk := os.read(fd, 1 << 20):
            chunks.append(chunk)
        *lines, torn = b"".join(chunks).split(b"\n")
        for raw in lines:
            self._take(self._parse(raw, self._line + 1, self.path), f"{self.path}:{self._line + 1}")
            self._line += 1
            self._offset += len(raw) + 1
            self._last_line = raw + b"\n"
        self._torn = bool(torn)
        return torn

    def _has_moved(self, fd: int) -> bool:
        """Return whether the last known line is not where it was."""
        return os.pread(fd, len(self._last_line), self._offset - len(self._last_line)) != self._last_line

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

    def _take(self, data: Record, place: str, *, archived: bool = False) -> None:
        position = self._by_key.setdefault(self.key(data), len(self._records))
        if position == len(self._records):
            self._records.append(data)
            self._places.append(place)
            latest = self._dates[-1] if self._dates else ""
            self._dates.append("" if archived else max(data["date"], latest))
        elif self._records[position] != data:
            names = ", ".join(f"{name}={shown(data[name])}" for name in KEYS[self.kind])
            raise RecordError(
                f"{place}: corrupt record, {names} is recorded otherwise in {self._places[position]}. Delete one of the two."
            )

    def _set_aside(self, fd: int, torn: bytes) -> None:
        """Move an unfinished last line to FILE.torn; the sample it stood for runs again."""
        set_aside(self.path, torn)
        os.ftruncate(fd, self._offset)
