"""Joining the parts of a study (`harness.study.parts`) into its own files, by content.

Each record whose key is not in the study's own file yet goes into it, at its date. Then the part goes, in one step: a process
that dies before it leaves records in both, which count once, and the next command on the study ends it. A part whose process
may still write stays.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from harness.core.errors import UserError
from harness.study.parts import PARTS, Busy, alone, has_ended, parts_in
from harness.study.pruning import unfinished
from harness.study.record_file import RecordFile
from harness.study.record_files import RECORDS
from harness.study.record_io import RecordError, set_aside
from harness.study.store import Store
from harness.study.study_file import joined_lines

JOINED = "joined-"
"""The beginning of the name of a part that is being removed: it is none any more."""


def join_parts(folder: Path) -> int:
    """Join all parts of the study in `folder` that have ended; returns how many. Where another process changes the study, and
    goes on with it, they are left to the next command, which is said. Raises RecordError for a corrupt record, and where it
    can't be written: every part is then still there, and read."""
    records = folder / "records"
    if not (records / PARTS).is_dir() or unfinished(Store(folder)):
        return 0
    try:
        return _join_ended(records)
    except Busy as error:
        print(f"warning: {error}: what workers measured is read where it is, and joined by the next command", file=sys.stderr)
        return 0


def _join_ended(records: Path) -> int:
    with alone(records):
        for path in (records / PARTS).glob(f"{JOINED}*"):
            shutil.rmtree(path, ignore_errors=True)
        ended = [part for part in parts_in(records) if has_ended(part)]
        if ended:
            for kind in RECORDS:  # processes first: what they measured is never without them
                _join(records, kind, ended)
            for part in ended:
                _remove(part)
    return len(ended)


def _join(records: Path, kind: str, parts: Sequence[Path]) -> None:
    """Join the records of one kind, and what was unfinished of it."""
    own = RecordFile(records / f"{kind}.jsonl", kind)
    files = [RecordFile(part / own.path.name, kind, shared=False) for part in parts]
    read = {file: file.read() for file in files if file.exists()}
    others = {file: lines for file, lines in read.items() if lines}
    if others:
        own.read()
        new = [others[file][position] for file, position in joined_lines(own, others) if file is not own]
        try:
            own.insert_all(new)
        except UserError as error:
            raise RecordError(f"{error}; what workers measured is safe in {records / PARTS}") from error
    for file in files:
        if file.unfinished:
            set_aside(own.path, file.path.read_bytes().rpartition(b"\n")[2])


def _remove(part: Path) -> None:
    """Remove a part in one step: its name is another one first."""
    name = part.with_name(f"{JOINED}{part.name}")
    try:
        part.rename(name)
    except OSError as error:
        raise RecordError(f"{part} can't be removed ({error.strerror or error}); what it holds counts once") from error
    with suppress(OSError):
        shutil.rmtree(name)
