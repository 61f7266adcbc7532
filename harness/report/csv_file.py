"""CSV files that are written whole, and how their values are written."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from harness.core.files import write_atomically


def value_text(value: object) -> str:
    """Return a value as its cell shows it: nothing for None, a float with six digits."""
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Iterable[object]]) -> Path:
    """Write rows, each with its values in the order of the columns, in one step: readers see the old file or the new one.

    Raises UserError where it can't be written.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([value_text(value) for value in row] for row in rows)
    return write_atomically(path, lambda file: file.write(text.getvalue().encode()))
