"""The rows of the page: those of the joined leaderboard, with the name, look and signs that pictures give them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from math import isfinite
from typing import Any

from harness.report.figures.looks import MARKERS, NIGHT, line_colour, looks_of
from harness.report.joined import JoinedRow, joined_rows
from harness.report.joined_columns import COLUMNS
from harness.report.lines import rows_by_line
from harness.report.rows import Row
from harness.study.columns import AVERAGE

LEFT_OUT = (
    *("p_value", "effective_density", "token_density", "full_rows", "dense_kernel"),
    *("arm", "group", "cell", "version"),
)
"""Columns of the joined leaderboard that the page goes without: ids, and what other columns say too."""
DRAWN = ("line", "look", "native", "average")
"""What the page's rows have beside those columns: the name of their line; the method whose colour they have; whether they are
at the method's own defaults; of a single task, the place of its average among the rows, which has the command."""
SHOWN = tuple(name for name in COLUMNS if name not in LEFT_OUT)
"""The columns of the page."""
DIGITS = 6
"""Significant digits of numbers, as in CSV files."""


def page_rows(rows: Sequence[Row]) -> list[JoinedRow]:
    """Return the joined rows of one study with `line`, `look` and `native`, in their order."""
    names = _line_names(rows)
    return [
        joined | {"line": names[id(row)], "look": _look_name(row), "native": _is_native(row)}
        for row, joined in zip(rows, joined_rows(rows), strict=True)
    ]


def _look_name(row: Row) -> str:
    """Return whose colour a row has: its method, or the one that decodes after a dense prefill."""
    return row.method if row.block_size is not None else row.decode.method or row.method


def _is_native(row: Row) -> bool:
    """Return whether a row is of a method at its own defaults, which was asked for no density at prefill."""
    return row.sparsity is None and row.block_size is not None


def _line_names(rows: Sequence[Row]) -> dict[int, str]:
    """Return the name of each row's line, by the row's id(). Single tasks have that of their average; a method at its own
    defaults has that of its only line."""
    averages = {row.group: row for row in rows if row.task == AVERAGE}
    alike: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        if row.task == AVERAGE or row.group not in averages:
            phase = (row.is_baseline, row.block_size is None)
            alike[row.model, row.device, row.task == AVERAGE, _is_native(row), phase].append(row)
    names: dict[int, str] = {}
    for place in sorted(alike):  # methods at their own defaults after all others
        native, lines = place[-2], _lines(alike[place])
        others = {names[id(row)]: row.method for row in alike.get((*place[:-2], False, place[-1]), ()) if native}
        for name, line in lines.items():
            of_method = [other for other, method in others.items() if method == line[0].method]
            alone = sum(members[0].method == line[0].method for members in lines.values()) == 1
            names |= dict.fromkeys(map(id, line), of_method[0] if alone and len(of_method) == 1 else name)
    return names | {id(row): names[id(averages[row.group])] for row in rows if id(row) not in names}


def _lines(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return the lines of rows by name. After a dense prefill they are told apart by what decodes."""
    if rows[0].is_baseline or rows[0].block_size is not None:
        return rows_by_line(rows)
    lines = rows_by_line(rows, along="decode_density")
    decoding = {name: name.partition(" (")[2].removesuffix(")") or _look_name(line[0]) for name, line in lines.items()}
    return {f"{decoding[name]}, decoding": line for name, line in lines.items()}


def packed(rows: Sequence[JoinedRow]) -> dict[str, Any]:
    """Return rows column by column, for JSON: numbers and truths as lists, texts as the list of different ones and the place of
    each row's in it (-1 where it has none). A column in which every single task has what its average has, such as the times of
    their arm, is in `shared`, and goes without those tasks."""
    averages = {_group(row): place for place, row in enumerate(rows) if row["kind"] == "average"}
    places = [averages.get(_group(row)) if row["kind"] == "cell" else None for row in rows]
    columns: dict[str, Any] = {}
    shared = []
    for name in (*SHOWN, *DRAWN[:-1]):
        values = [row[name] for row in rows]
        if all(place is None or value == values[place] for value, place in zip(values, places, strict=True)):
            shared.append(name)
            values = [value for value, place in zip(values, places, strict=True) if place is None]
        columns[name] = _texts(values) if _is_text(name) else [_short(value) for value in values]
    return columns | {"average": places, "shared": shared}


def _group(row: JoinedRow) -> tuple[Any, ...]:
    """Return what an average and its single tasks have in common."""
    return row["study"], row["group"]


def _is_text(name: str) -> bool:
    return name in ("line", "look") or (name in COLUMNS and COLUMNS[name].type == "text")


def _texts(values: Sequence[str | None]) -> dict[str, list[Any]]:
    places: dict[str, int] = {}
    codes = [-1 if value is None else places.setdefault(value, len(places)) for value in values]
    return {"values": list(places), "codes": codes}


def _short(value: Any) -> Any:
    """Return a number with as many digits as CSV files have, a truth as 0 or 1, nothing for a number that JSON has not."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if isfinite(value) else None
    return int(value) if isinstance(value, bool) else value


def looks_of_rows(rows: Iterable[JoinedRow]) -> dict[str, dict[str, str]]:
    """Return colour on white, colour on black and plotly's marker of every method that rows are drawn as."""
    looks = looks_of(row["look"] for row in rows)
    return {
        name: {"light": look.colour, "dark": line_colour(look.colour, NIGHT), "symbol": MARKERS[look.marker]}
        for name, look in looks.items()
    }
