"""CSV files that are written whole, how their values are written, and how they are read back.

A spreadsheet runs a cell that begins with = + - @, a tab or a carriage return, and what a name begins with is anyone's
choice. So such a text is written with an apostrophe before it, which spreadsheets take for "this is text"; `cell_text` takes it
off. A number stays a number, negative ones too.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from harness.core.files import write_atomically

RUN = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
"""What a spreadsheet takes for the beginning of a formula, or drops before it looks for one."""
QUOTE = "'"
"""Written before a text that would be run, and before one that begins with it."""


def value_text(value: object) -> str:
    """Return a value as text: nothing for None, a float with six digits."""
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def cell(value: object) -> str:
    """Return a value as its cell holds it: a text that a spreadsheet would run is quoted."""
    text = value_text(value)
    return QUOTE + text if isinstance(value, str) and text.startswith((*RUN, QUOTE)) and not _is_number(text) else text


def cell_text(cell: str) -> str:
    """Return the text that a cell was written from."""
    return cell.removeprefix(QUOTE)


def _is_number(text: str) -> bool:
    """Return whether a spreadsheet reads a number, and runs nothing."""
    try:
        float(text)
    except ValueError:
        return False
    return text.isascii() and text.strip() == text


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Iterable[object]]) -> Path:
    """Write rows, each with its values in the order of the columns, in one step: readers see the old file or the new one.

    Raises UserError where it can't be written.
    """
    text = io.StringIO(newline="")
    plain = csv.writer(text, lineterminator="\n")
    quoted = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)  # before Python 3.13 a bare \r was not
    plain.writerow(columns)
    for row in rows:
        cells = [cell(value) for value in row]
        (quoted if any("\r" in cell for cell in cells) else plain).writerow(cells)
    return write_atomically(path, lambda file: file.write(text.getvalue().encode(errors="backslashreplace")))


def read_csv(path: Path) -> list[dict[str, str]]:
    """Return the rows of a file that `write_csv` wrote, by column, texts as they were."""
    with path.open(encoding="utf-8", newline="") as file:
        return [{name: cell_text(cell) for name, cell in row.items()} for row in csv.DictReader(file)]
