"""Which rows form one line of a figure, and what the line is called: the method, and what tells it from its other lines."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from harness.core.knob_names import RELEASED, knob_name, usual_knobs, with_texts
from harness.report.csv_file import value_text
from harness.report.row_texts import FULL
from harness.report.rows import KnobValue, Row, is_number
from harness.study.full_rows import joined, with_full_rows
from harness.study.identity import digest
from harness.study.matching import Match

Along = Literal["sparsity", "length", "block_size", "decode_density"]
"""What moves along a line: the field of its rows on the x axis."""
LONGEST = 120
"""Letters of a line's name at most."""
SETTINGS = ("block_size", "dtype", "seed", "kernel")
"""What lines of one method may differ in beside the native knobs."""
DECODE = "decode."
"""How the name of a knob of decoding begins, among those of prefill."""
SPENT = ("decode.budget", "decode.sparsity", "decode.threshold")
"""The knobs of decoding that move along its density: any other number is another line."""

TextOf = Callable[[Row], str | None]
"""The text of a row in a line's name: "" for a value that needs no name, None where the row doesn't have the value."""
Parts = dict[tuple[str, ...], list[Row]]
"""Rows of a method by the texts that tell them apart."""


def rows_by_line(
    rows: Sequence[Row], *, along: Along = "sparsity", beside: Sequence[Row] = (), asked: bool = False
) -> dict[str, list[Row]]:
    """Return the rows of every line, by its name: the method, and in brackets what tells it from the method's other lines.

    along: the field on the x axis, which never splits a line. A number among the native knobs that moves with the
    sparsity (a threshold found for each) does not split one either. Nor do full rows that did not fit everywhere: the name
    says how many there were, the fewest and the most. beside: rows that are not shown, from which names tell the lines apart
    all the same. asked: whether names say the full rows that were asked for, so that lines of one name are of one method.
    """
    shown = set(map(id, rows))
    lines: dict[str, list[Row]] = defaultdict(list)
    for method, texts, members in _parts([*rows, *beside], along):
        if line_rows := [row for row in members if id(row) in shown]:
            lines[_name(method, texts, [] if asked else line_rows)] += line_rows
    return dict(lines)


def _short(name: str) -> str:
    """Return a line's name as pictures and tables have room for it; of a longer one its beginning, and a hash of it all."""
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 9]}…{digest(name)[:8]}"


def line_names(rows: Sequence[Row]) -> dict[int, str]:
    """Return what each row is called, by the row's id(): as its line is, but for full rows, of which it says its own number."""
    return {id(row): _name(method, texts, [row]) for method, texts, members in _parts(rows, "sparsity") for row in members}


def _parts(rows: Sequence[Row], along: Along) -> Iterator[tuple[str, tuple[str, ...], list[Row]]]:
    """Yield the method of each line, what tells it from the method's other lines, and its rows."""
    by_method: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_method[row.method].append(row)
    for method, members in by_method.items():
        parts = _split_by_settings({(): members}, along)
        yield from ((method, texts, part) for texts, part in _split_by_knobs(parts, method, members, along).items())


def _name(method: str, texts: tuple[str, ...], rows: Sequence[Row]) -> str:
    """Return what rows are called by their method and the texts that tell them apart. Where full rows did not fit, it says how
    many there were instead of how many were asked for."""
    if (full := joined(row.full_rows for row in rows)) is not None:
        texts = with_full_rows(method, rows[0].knobs, texts, full)
    return _short(with_texts(method, texts))


def _split_by_settings(parts: Parts, along: Along) -> Parts:
    for setting in SETTINGS:
        if setting != along:
            parts = _split(parts, _Trait(setting.split("_")[0], partial(_setting_text, setting=setting)))
    chunk = _Trait("chunk", lambda row: "" if row.prefill_chunk is None else str(row.prefill_chunk))
    return _split(_split(parts, chunk, always=True), _Trait("", lambda row: row.decode.method or FULL))


def _split_by_knobs(parts: Parts, method: str, rows: Sequence[Row], along: Along) -> Parts:
    """Split by words first, then by knobs with defaults, then by numbers: whole ones and those of few values first. Once they
    have told lines apart, a threshold found for each row needn't. A knob that isn't at its default is named even where all rows
    here have it: in other studies the bare name is without."""
    values = {name: seen for name, seen in _knob_values(rows).items() if name not in (RELEASED, f"{DECODE}{RELEASED}")}
    for name in (RELEASED, f"{DECODE}{RELEASED}"):
        parts = _split(parts, _Trait("", partial(_released_text, name=name)), always=True)
    usual = usual_knobs(method)
    words = [name for name, seen in values.items() if not all(map(is_number, seen)) and name not in usual]
    numbers = [name for name, seen in values.items() if all(map(is_number, seen)) and name not in usual]
    for name in words:
        parts = _split(parts, _knob_trait(name))
    for name in usual:
        parts = _split(parts, _Trait("", partial(_unusual_text, name=name)), always=True)
    for name in sorted(numbers, key=lambda name: (any(map(_is_fraction, values[name])), _count(rows, name))):
        if along == "decode_density" and name.startswith(DECODE) and name not in SPENT:
            parts = _split(parts, _knob_trait(name))
        else:
            parts = _split_where_needed(parts, name, along)
    return parts


@dataclass(frozen=True)
class _Trait:
    """Something that lines of a method may differ in: how it is called, and its text in a row."""

    title: str
    text_of: TextOf


def _split(parts: Parts, trait: _Trait, *, always: bool = False) -> Parts:
    """Return each part told apart by a trait, whose texts name the new ones where there are several, or always. A row that
    doesn't have it is of the line that needs no name."""
    split: Parts = defaultdict(list)
    for texts, rows in parts.items():
        named = always or len({trait.text_of(row) for row in rows} - {None}) > 1
        for row in rows:
            text = trait.text_of(row)
            split[(*texts, f"{trait.title} {text}".strip()) if named and text else texts].append(row)
    return dict(split)


def _split_where_needed(parts: Parts, name: str, along: Along) -> Parts:
    """Return each part told apart by a number, if rows of one sparsity and one place on the x axis differ in it."""
    split: Parts = {}
    for texts, rows in parts.items():
        seen: dict[tuple[object, ...], set[str]] = defaultdict(set)
        for row in rows:
            if row.sparsity is not None and row.match != Match.NEAREST:  # two whole numbers beside one request are one line
                seen[row.sparsity, row.length, getattr(row, along)].add(_knob_text(row, name))
        several = any(len(values) > 1 for values in seen.values())
        split |= _split({texts: rows}, _knob_trait(name)) if several else {texts: rows}
    return split


def _setting_text(row: Row, setting: str) -> str | None:
    """Return the value of a setting. Of kernels the sparse ones: a method may leave some layers dense; None where none ran, in
    the row of a mass alone or of a cell that failed."""
    if setting == "kernel":
        return "+".join(row.kernels if row.is_baseline else row.sparse_kernels) or None
    value = getattr(row, setting)
    return None if value is None else str(value)


def _knobs(row: Row) -> Mapping[str, KnobValue]:
    """Return the native knobs of a row, those of decoding after those of prefill."""
    decode = {f"{DECODE}{name}": value for name, value in row.decode.knobs.items() if value is not None}
    return {**row.knobs, **decode}


def _knob_values(rows: Sequence[Row]) -> dict[str, list[KnobValue]]:
    """Return the values of every knob that a row has, in the order in which knobs first come up."""
    values: dict[str, list[KnobValue]] = defaultdict(list)
    for row in rows:
        for name, value in _knobs(row).items():
            values[name].append(value)
    return values


def _knob_text(row: Row, name: str) -> str:
    return value_text(_knobs(row).get(name))


def _released_text(row: Row, name: str) -> str:
    """Return that a method ran as released, the one of the phase whose knob is named, else nothing."""
    return name.replace("_", " ").replace(".", " ") if _knobs(row).get(name) else ""


def _knob_trait(name: str) -> _Trait:
    return _Trait(_title(name), partial(_knob_text, name=name))


def _title(knob: str) -> str:
    """Return what names call a knob: its first word; of one of decoding, all of them."""
    return knob.removeprefix(DECODE).replace("_", " ") if knob.startswith(DECODE) else knob.split("_")[0]


def _count(rows: Sequence[Row], knob: str) -> int:
    """Return how many values of a knob there are, its lack being one."""
    return len({_knob_text(row, knob) for row in rows})


def _is_fraction(value: KnobValue) -> bool:
    return isinstance(value, float) and not value.is_integer()


def _unusual_text(row: Row, name: str) -> str:
    """Return what names say of a knob that is not at its default, else nothing."""
    return knob_name(row.method, row.knobs, name)
