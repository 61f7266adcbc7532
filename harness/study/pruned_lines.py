"""The files of one kind of records without some of their lines, and with those lines again, byte for byte."""

from __future__ import annotations

import lzma
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.core.errors import UserError
from harness.study.lines import LineError, Record, parse_line
from harness.study.record_files import KEYS
from harness.study.record_io import RecordError, decompress
from harness.study.study_file import StudyFile

Files = dict[str, bytes | None]
"""What files are to hold, by name; None for one that is not to be there."""


@dataclass(frozen=True)
class Text:
    """What the two files of a kind hold: lines with their ends, of the archive and of the file itself, and of the latter an
    unfinished last one."""

    archived: tuple[bytes, ...]
    own: tuple[bytes, ...]
    torn: bytes = b""

    @property
    def lines(self) -> tuple[bytes, ...]:
        """Return the complete lines of both, as they are read."""
        return self.archived + self.own

    def without(self, positions: Sequence[int]) -> Text:
        """Return the text without the lines at some positions of `lines`."""
        gone, first = set(positions), len(self.archived)
        left = [line for position, line in enumerate(self.archived) if position not in gone]
        left_own = [line for position, line in enumerate(self.own, first) if position not in gone]
        return Text(tuple(left), tuple(left_own), self.torn)


def text_of(folder: Path, file: StudyFile) -> Text:
    """Return what the files of a kind hold in a folder, which may be that of the study or another one."""
    archived, path = folder / file.archived.name, folder / file.path.name
    *own, torn = (path.read_bytes() if os.path.lexists(path) else b"").split(b"\n")
    *packed, _ = (decompress(archived) if os.path.lexists(archived) else b"").split(b"\n")
    return Text(tuple(line + b"\n" for line in packed), tuple(line + b"\n" for line in own), torn)


def records_of(text: Text, file: StudyFile) -> list[Record]:
    """Return the records of all complete lines, those that are there twice too. Raises RecordError for a corrupt one."""
    return [_parsed(line, file) for line in text.lines]


def _parsed(line: bytes, file: StudyFile) -> Record:
    try:
        return parse_line(line[:-1], file.kind)
    except LineError as error:
        raise RecordError(f"{file.path}: corrupt record, {error}") from None


def files_without(text: Text, positions: Sequence[int], file: StudyFile) -> Files:
    """Return the files that change where the lines at some positions go; an archive without lines goes too."""
    left, files = text.without(positions), Files()
    if left.archived != text.archived:
        files[file.archived.name] = lzma.compress(b"".join(left.archived), preset=6) if left.archived else None
    if left.own != text.own:
        files[file.path.name] = b"".join(left.own) + left.torn
    return files


def files_restored(file: StudyFile, originals: Path, positions: Sequence[int]) -> Files:
    """Return the files of a kind as they lie in a folder of originals, and after them the lines that were added since those at
    some positions went. Raises UserError where more than that was changed, or what went was measured again."""
    folder = file.path.parent
    before, now = text_of(originals, file), text_of(folder, file)
    added = _added(before, before.without(positions), now)
    if added is None:
        raise UserError(
            f"{file.path}: changed since by more than adding to it; its lines of then are in {originals}: mend it by hand"
        )
    if file.kind in KEYS:
        gone = {file.key(_parsed(before.lines[position], file)) for position in positions}
        if any(file.key(_parsed(line, file)) in gone for line in added):
            raise UserError(
                f"{file.path}: what was taken out was measured again since: take that out first, which keeps it too"
            )
    archived, own = originals / file.archived.name, originals / file.path.name
    content = b"".join((*before.own, *added)) + now.torn
    return {
        file.archived.name: archived.read_bytes() if archived.exists() else None,
        file.path.name: content if content or own.exists() else None,
    }


def _added(before: Text, after: Text, now: Text) -> tuple[bytes, ...] | None:
    """Return the lines that were added to a text since it was made of one from before; None where more than that was done.

    Each file may still be as before, where a process died between two; and all lines may have been archived since.
    """
    if now.archived in (before.archived, after.archived):
        for text in (before, after):
            if now.own[: len(text.own)] == text.own:
                return now.own[len(text.own) :]
    return now.lines[len(after.lines) :] if now.lines[: len(after.lines)] == after.lines else None
