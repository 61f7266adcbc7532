"""The records of one kind of a study: those of its own file, and of the parts that processes write on their own.

All are read as if they were in one file. Its lines come by date, in each of the files in the order in which they were written.
Of records with the same key, which two processes may both have measured, the study's own counts; else the oldest one, and of
equally old ones that of the part whose name comes first. Joining (`harness.study.joining`) writes what is read here.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.study.lines import Record
from harness.study.parts import alone, has_ended, parts_in, written_parts
from harness.study.record_file import RecordFile
from harness.study.record_io import LocksFail

Line = tuple[RecordFile, int]
"""A record: the file that holds it, and its position there."""


class StudyFile:
    """The records of one kind, in the folder of a study's records. own: the study's own file, `KIND.jsonl`."""

    def __init__(self, records: Path, kind: str) -> None:
        self.folder, self.kind = records, kind
        self.own = RecordFile(records / f"{kind}.jsonl", kind)
        self.path, self.archived, self.key = self.own.path, self.own.archived, self.own.key
        self._parts: dict[Path, RecordFile] = {}
        self._lines: list[Line] | None = None

    def exists(self) -> bool:
        """Return whether anything was ever recorded."""
        return self.own.exists() or any((part / self.path.name).exists() for part in parts_in(self.folder))

    @property
    def unfinished(self) -> str:
        """Return "FILE:LINE" of a last line that was unfinished at the last read: a kill, or a copy that was cut. Else ""."""
        ended = [file.unfinished for part, file in self._parts.items() if file.unfinished and has_ended(part)]
        return next((place for place in (self.own.unfinished, *ended) if place), "")

    def place(self, position: int) -> str:
        """Return "FILE:LINE" of the record at this position of what `read` returns."""
        file, place = self._lines[position] if self._lines is not None else (self.own, position)
        return file.place(place)

    def read(self) -> list[Record]:
        """Return all complete records, oldest first. Raises RecordError at a line that is no record of this kind."""
        while True:
            parts = parts_in(self.folder)
            own = self.own.read()
            self._parts = {part: self._file(part) for part in parts}
            read = {file: file.read() for file in self._parts.values()}
            if parts_in(self.folder) == parts:  # else one was joined, or began, as they were read
                break
        others = {file: records for file, records in read.items() if records}
        if not others:
            self._lines = None
            return own
        self._lines = joined_lines(self.own, others)
        return [own[place] if file is self.own else others[file][place] for file, place in self._lines]

    def has(self, *key: Any) -> bool:
        """Return whether a record with this key was there at the last read or append."""
        return self.own.has(*key) or any(file.has(*key) for file in self._parts.values())

    def append(self, record: Any) -> bool:
        """Append one record (a dataclass of `harness.study.schema`). Returns False where its key was there already: nothing is
        written then."""
        return self.append_all([record]) == 1

    def append_all(self, records: Iterable[Any]) -> int:
        """Append records with one write and one sync, to this process's part where it has one, and where locks don't work;
        returns how many had a key that wasn't there yet.

        Raises UserError for a record that no reader would accept: nothing is written then.
        """
        rows, parts = list(records), written_parts()
        if not parts.always:
            try:
                return self.own.append_all(rows)
            except LocksFail:
                pass
        part = parts.part(self.folder)
        file = self._parts[part] = self._file(part)
        return file.append_all(rows, self.has)

    def archive(self) -> int:
        """Compress the study's own file (`RecordFile.archive`); returns how many lines it holds now. Raises UserError where
        another process changes it for too long."""
        if not self.own.exists():
            return 0
        with alone(self.folder):
            return self.own.archive()

    def _file(self, part: Path) -> RecordFile:
        return self._parts.get(part) or RecordFile(part / self.path.name, self.kind, shared=False)


def joined_lines(own: RecordFile, others: Mapping[RecordFile, Sequence[Record]]) -> list[Line]:
    """Return which records of a study's own file and of its parts count, in the order in which they are read. others: the
    records of each part that has any."""
    files = [own, *others]
    cut = bisect_right(own.dates, min(file.dates[0] for file in others))  # what is older comes first as it is
    starts = [cut] + [0] * len(others)
    rest = [
        (date, place, position)
        for place, file in enumerate(files)
        for position, date in enumerate(file.dates[starts[place] :], starts[place])
    ]
    rest.sort()
    keys = [list(file.keys) for file in files]
    counted = set(keys[0])
    lines: list[Line] = [(own, position) for position in range(cut)]
    for _, place, position in rest:
        if place:
            key = keys[place][position]
            if key in counted:
                continue
            counted.add(key)
        lines.append((files[place], position))
    return lines
