"""Resuming: the one protocol by which every measurer leaves out what is recorded already and goes on after an error.

1. Ask. Of a kind whose records have a key (`record_files.KEYS`), `recorded` returns the record of an id, which is then not
   measured again. Of a kind whose records are states (cells, kernel cases), `is_settled` says whether the last one needs no
   other run, and `missing_indices` which samples or documents a cell lacks.
2. Measure, inside `with Attempt() as attempt:`. An error of the measurement stays in `attempt.error`, in words in
   `attempt.reason`, and costs what it happened in alone. Where nothing may go on after it (a self-check, a calibration), there
   is no Attempt, and the error is raised.
3. Append what was measured as soon as it is there, so that a kill loses only what was under way. A failure is recorded
   (`Status.FAILED`) where records are states, and only said where they have keys: either way the next run of the same command
   tries it again.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any

from harness.core.errors import UserError
from harness.core.mistakes import first_line, note_origin, origin
from harness.study.schema import Status
from harness.study.store import Record, RecordError, StudyFile

LONGEST_REASON = 200
"""Characters of a foreign error's first line that a reason holds: CUDA's own, of full memory, lists all processes."""


class Attempt:
    """A `with` block whose error is kept instead of raised: out of memory, a kernel that fails, ….

    A RecordError passes, as nothing more may be written after it, and so does what is no Exception (a keyboard interrupt).
    error: what was raised in the block, or None.
    """

    def __init__(self) -> None:
        self.error: Exception | None = None

    def __enter__(self) -> Attempt:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, frames: TracebackType | None) -> bool:
        if not isinstance(error, Exception) or isinstance(error, RecordError):
            return False
        note_origin(error)
        self.error = error
        return True

    @property
    def reason(self) -> str:
        """Return the error in one line; "" where there was none."""
        return "" if self.error is None else one_line(self.error)


def recorded(file: StudyFile, key: str) -> Record | None:
    """Return the record of `file` with this key, read anew, or None. For kinds of one key field alone (`record_files.KEYS`)."""
    records = file.read()
    if not file.has(key):
        return None
    return next(record for record in reversed(records) if file.key(record) == (key,))


def is_settled(state: Mapping[str, Any] | None) -> bool:
    """Return whether the last state of a cell or kernel case says that no other run is needed: finished, gated, or failed for
    good (`final`)."""
    return state is not None and (state["status"] in (Status.OK, Status.GATED) or bool(state.get("final")))


def missing_indices(recorded_indices: set[int], count: int) -> list[int]:
    """Return the indices of the samples (or documents) still to run so that 0 … count-1 are all recorded."""
    return [index for index in range(count) if index not in recorded_indices]


def one_line(error: Exception) -> str:
    """Return an error in one line: a UserError as it is, any other with its type, at most LONGEST_REASON characters, and where
    in the code of the method's author it happened, else where in this project. A full memory and a kernel that refuses what the
    harness gives it are no mistakes: no line is to blame."""
    if isinstance(error, UserError):
        return next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    text = first_line(error)
    text = text if len(text) <= LONGEST_REASON else f"{text[:LONGEST_REASON]}…"
    came_from = origin(error)
    refused = isinstance(error, ValueError) and not came_from.author
    return text if refused or not came_from.place or "out of memory" in str(error).lower() else f"{text} ({came_from.place})"
