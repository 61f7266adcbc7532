"""Which rows make one line: those of a method, told apart by what really differs, named by no more than that."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from typing import Any

from attention_kernels import block_sparse, dense

import methods
from harness.report.knobs import is_number, pairs
from harness.report.leaderboard import Row, is_baseline_row

SETTINGS = ("block_size", "dtype", "seed", "kernel")
"""Columns beside the native knobs in which the lines of one method may differ."""
SPENT = ("decode.budget", "decode.sparsity", "decode.threshold")
"""The knobs of decoding that move along its density: any other number is another line."""
DENSE = frozenset(dense.KERNELS) - frozenset(block_sparse.KERNELS)


def lines(rows: Sequence[Row], *, along: str = "sparsity") -> dict[str, list[Row]]:
    """The rows of every line, by its name: the method, and in brackets what tells it from the method's other lines.

    along: the column on the x axis, which never splits a line. A number among the native knobs that moves with the
    sparsity (a threshold found for each) does not split one either.
    """
    by_method: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_method[str(row["method"])].append(row)
    found: dict[str, list[Row]] = {}
    for method, members in by_method.items():
        parts: dict[tuple[str, ...], list[Row]] = {(): members}
        for column in SETTINGS:
            if column != along:
                parts = _split(parts, column, lambda row, column=column: _setting(row, column))  # type: ignore[misc]
        parts = _split(parts, "", lambda row: decoding(row)[0])
        later = _later(method, members)
        for name in _names(members, numbers=False):
            if name not in later:
                parts = _split(parts, name, lambda row, name=name: knobs(row).get(name, ""))  # type: ignore[misc]
        for name, usual in later.items():  # named even where all rows here have it: in other studies the bare name is without
            values_of = partial(_unusual, name=name, usual=usual)
            parts = _split(parts, name, values_of, always=True)
        # whole numbers and those of few values first: once they have told lines apart, a threshold found for each row needn't
        numbers = [name for name in _names(members, numbers=True) if name not in later]
        values = {name: {knobs(row).get(name, "") for row in members} for name in numbers}
        few = sorted(values, key=lambda name: (any("." in value or "e" in value for value in values[name]), len(values[name])))
        for name in few:
            if along == "decode_density" and name.startswith("decode.") and name not in SPENT:
                parts = _split(parts, name, lambda row, name=name: knobs(row).get(name, ""))  # type: ignore[misc]
            else:
                parts = _split_numbers(parts, name, along)
        found |= {f"{method} ({', '.join(extra)})" if extra else method: part for extra, part in parts.items()}
    return found


def _setting(row: Row, column: str) -> Any:
    """The value by which lines are told apart. Of kernels the sparse ones: a method may leave some layers dense; None where
    none ran, in the row of a mass alone or of a cell that failed."""
    if column != "kernel" or is_baseline_row(row):
        return row[column]
    ran = str(row["kernel"] or "").split("+")
    return "+".join(name for name in ran if name not in DENSE) or row["kernel"] or None


def knobs(row: Row) -> dict[str, str]:
    """The native knobs of a row, from its `knob` column."""
    return pairs(row["knob"]) | decoding(row)[1]


def decoding(row: Row) -> tuple[str, dict[str, str]]:
    """The method that decodes, and its knobs, from the `decode` column ("NAME knob=value … (kernels)")."""
    name, *rest = str(row["decode"] or "").partition(" (")[0].split(" ")
    return name, {f"decode.{knob}": value for knob, _, value in (item.partition("=") for item in rest)}


def _names(rows: Sequence[Row], *, numbers: bool) -> list[str]:
    values: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        for name, value in knobs(row).items():
            values[name].add(value)
    return [name for name, seen in values.items() if all(map(is_number, seen)) == numbers]


def _later(method: str, rows: Sequence[Row]) -> dict[str, str]:
    """The knobs that a method was given after rows of it had been recorded, each with the value that those stand for, as text.
    Not those that are fractions: they are found for each row."""
    try:
        added = methods.get(method).added_knobs
    except ValueError:  # a method of another version
        return {}
    usual = {name: "" if value is None else str(value) for name, value in added.items()}
    return {name: text for name, text in usual.items() if not any(_fraction(knobs(row).get(name, "")) for row in rows)}


def _fraction(value: str) -> bool:
    return is_number(value) and not value.removeprefix("-").isdigit() and value != ""


def _unusual(row: Row, name: str, usual: str) -> str:
    """The value of a knob where it is not the usual one, else nothing."""
    value = knobs(row).get(name, "")
    return "" if value == usual else value


def _split(
    parts: dict[tuple[str, ...], list[Row]], name: str, value: Any, *, always: bool = False
) -> dict[tuple[str, ...], list[Row]]:
    """Each part told apart by a value, which names it where there are several, or always."""
    made: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for extra, rows in parts.items():
        several = always or len({value(row) for row in rows} - {None}) > 1
        for row in rows:
            known = several and value(row) is not None  # a row without the value is of the line that needs no name
            shown = name.removeprefix("decode.").replace("_", " ") if name.startswith("decode.") else name.split("_")[0]
            text = f"{shown} {value(row)}".strip()
            made[(*extra, text) if known and value(row) != "" else extra].append(row)
    return dict(made)


def _split_numbers(parts: dict[tuple[str, ...], list[Row]], name: str, along: str) -> dict[tuple[str, ...], list[Row]]:
    """Split by a number only where rows of one sparsity and one place on the x axis differ in it."""
    made: dict[tuple[str, ...], list[Row]] = {}
    for extra, rows in parts.items():
        seen: dict[tuple[Any, ...], set[str]] = defaultdict(set)
        for row in rows:
            if row["sparsity"] is not None:
                seen[row["sparsity"], row["length"], row[along]].add(knobs(row).get(name, ""))
        if any(len(values) > 1 for values in seen.values()):
            made |= _split({extra: rows}, name, lambda row: knobs(row).get(name, ""))
        else:
            made[extra] = rows
    return made
