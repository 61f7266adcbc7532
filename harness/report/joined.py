"""results/leaderboard.csv: the rows of all studies in one file, one a cell and one an average, and how they are read back."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from harness.core.errors import UserError
from harness.report.csv_file import cell_text, write_csv
from harness.report.density_match import effective_density, prefill_request
from harness.report.front import is_bound_row
from harness.report.joined_columns import COLUMNS, VERSION
from harness.report.leaderboard import leaderboard_rows
from harness.report.leaderboard_csv import row_columns
from harness.report.row_texts import knobs_text
from harness.report.rows import Row
from harness.report.significance import MARGIN
from harness.study.columns import AVERAGE, PERPLEXITY
from harness.study.identity import digest
from harness.study.matching import Match
from harness.study.schema import Status
from harness.study.store import Store
from harness.tasks.names import benchmark_of, group_of

NAME = "leaderboard.csv"
"""The file in the folder of the studies."""
JoinedRow = dict[str, Any]
"""A row by column: text, int, float or bool, None where a cell is empty."""
KINDS = ("average", "times", "mass", "cell")
"""The values of the column `kind`, in the order of the file."""


def study_rows(store: Store, margin: float = MARGIN) -> list[JoinedRow]:
    """Return the rows of one study, in the order of its own leaderboard, with nothing of other studies in them.

    margin: as in `leaderboard_rows`. Raises RecordError for corrupt records.
    """
    return joined_rows(leaderboard_rows(store, margin))


def joined_rows(rows: Sequence[Row]) -> list[JoinedRow]:
    """Return the columns of all rows of a study, in their order; `superseded_by` is not known yet."""
    averaged: dict[str | None, list[Row]] = {row.group: [] for row in rows if row.task == AVERAGE}
    for row in rows:
        if row.task != AVERAGE and row.group in averaged:
            averaged[row.group].append(row)
    return [_joined_row(row, averaged) for row in rows]


def _joined_row(row: Row, averaged: dict[str | None, list[Row]]) -> JoinedRow:
    """Return the columns of a row. averaged: the rows of single tasks behind each average, by group."""
    values = row_columns(row) | _own_columns(row)
    behind = averaged.get(row.group, [])
    if row.task == AVERAGE:
        values |= {
            "benchmark": "+".join(sorted({benchmark_of(task.task) for task in behind} - {""})),
            "task_set": group_of([task.task for task in behind]),
            "prompt_set": digest(sorted((task.task, task.samples_seen) for task in behind)),
        }
    elif behind:
        values["settings"] = None  # two thirds of the file: those of the average measure it too
    return {name: _value(values.get(name)) for name in COLUMNS}


def _own_columns(row: Row) -> dict[str, Any]:
    """Return the columns that a study's own leaderboard lacks, or has in another form."""
    is_bound = is_bound_row(row)
    measured = row.score is not None or row.perplexity is not None
    usable = row.status == Status.OK and row.match != Match.OFF_DENSITY
    percentiles = ("total_low", "total_high", "ttft_low", "ttft_high")
    decoding = row.times.decode if row.times is not None else {}
    largest = max(decoding, default=None)
    speed = None if largest is None else decoding[largest]
    return {name: getattr(row.times, name, None) for name in percentiles} | {
        "kind": _kind(row),
        "rankable": measured and usable and not is_bound,
        "is_bound": is_bound,
        "is_dense": row.is_baseline,
        "knobs": knobs_text({name: value for name, value in row.knobs.items() if value is not None}),
        "benchmark": PERPLEXITY if row.task == PERPLEXITY else benchmark_of(row.task),
        "prompt_set": row.samples_seen,
        "requested_density": None if (asked := prefill_request(row)) is None else round(asked, 12),
        "effective_density": effective_density(row),
        "decode_batch": largest,
        "decode_tokens_s": None if speed is None else speed.tokens_s,
        "decode_speedup": None if speed is None else speed.speedup,
        "date": row.origin.date[:10],
        "arm": row.arm,
        "group": row.group,
        "version": VERSION,
    }


def _kind(row: Row) -> str:
    if row.task == AVERAGE:
        return "average"
    if row.task:
        return "cell"
    return "times" if row.times is not None else "mass"


def _value(value: Any) -> Any:
    """Return what the file holds of a value: nothing for an empty text, the text of an enumeration."""
    return None if value in ("", None) else str(value) if isinstance(value, str) else value


def in_order(rows: Iterable[JoinedRow]) -> list[JoinedRow]:
    """Return the rows of several studies as the file has them: by benchmark, model, length, study and kind, averages first and
    cells last; else in the order of their study. `superseded_by` is in them."""
    ordered = sorted(rows, key=_place)
    counts: dict[tuple[Any, ...], JoinedRow] = {}
    for row in ordered:
        other = counts.get(_same(row))
        if other is None or _weight(row) > _weight(other):
            counts[_same(row)] = row
    for row in ordered:
        best = counts[_same(row)]
        row["superseded_by"] = best["study"] if best["study"] != row["study"] else None
    return ordered


def _place(row: JoinedRow) -> tuple[Any, ...]:
    """Return what rows are ordered by. Cells follow the averages of their study closely: pandas, which guesses types by
    thousands of rows, would warn of a column that begins as text and ends empty."""
    return row["benchmark"] or "", row["model"], row["length"], row["study"], KINDS.index(row["kind"])


def _same(row: JoinedRow) -> tuple[Any, ...]:
    """Return what is equal for rows of two studies that measured the same on the same device."""
    what = row["cell"] if row["kind"] == "cell" else (row["arm"], row["question"], row["prompt_set"])
    return row["kind"], what, row["device"]


def _weight(row: JoinedRow) -> tuple[bool, int, str]:
    """Return what is larger for the row that counts of those that measured the same."""
    return row["accuracy"] is not None or row["perplexity"] is not None, row["samples"] or 0, row["date"]


def write_joined(path: Path, rows: Iterable[JoinedRow]) -> Path:
    """Write rows, in one step. Returns `path`. Raises UserError where it can't be written."""
    return write_csv(path, tuple(COLUMNS), ([row[name] for name in COLUMNS] for row in rows))


def read_joined(path: Path) -> list[JoinedRow]:
    """Return the rows of a joined leaderboard with their types, None for empty cells. Raises UserError for a file that can't be
    read, or is none of this version."""
    return list(iterate_joined(path))


def iterate_joined(path: Path) -> Iterator[JoinedRow]:
    """Yield the rows of a joined leaderboard one by one, as `read_joined` returns them. Raises UserError as that does."""
    again = "make it again with job=leaderboard"
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            if missing := [name for name in COLUMNS if name not in (reader.fieldnames or ())]:
                raise UserError(
                    f"{path}: no joined leaderboard of version {VERSION}, as it has no column {missing[0]}: {again}"
                )
            for line, row in enumerate(reader, 2):
                yield _typed(row, f"{path}, row {line}", again)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} can't be read ({getattr(error, 'strerror', None) or error}): {again}") from error


def _typed(row: dict[str, str], place: str, again: str) -> JoinedRow:
    """Return a row with its types."""
    if row["version"] != str(VERSION):
        raise UserError(f"{place}: columns of version {row['version'] or '?'}, and this reads version {VERSION}: {again}")
    try:
        return {name: _parsed(row[name], column.type) for name, column in COLUMNS.items()}
    except ValueError as error:
        raise UserError(f"{place}: {error}: {again}") from error


def _parsed(cell: str | None, type_: str) -> Any:
    """Return the value of a cell. Raises ValueError for one that is none of its type."""
    if cell is None:
        raise ValueError("the row ends early")
    if not cell:
        return None
    if type_ == "text":
        return cell_text(cell)
    if type_ == "True or False":
        if cell not in ("True", "False"):
            raise ValueError(f"{cell!r} is neither True nor False")
        return cell == "True"
    return int(cell) if type_ == "whole number" else float(cell)
