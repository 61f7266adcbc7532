"""A line of a file of records, held to the dataclass of its kind: the one place where what is on the disk is believed.

`harness.study.schema` says what each field may be. What is read is the object as it was written, so that an archive holds the
lines of the file it is made of; fields that are newer than a line are not in it.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from functools import lru_cache
from typing import Any

import msgspec

from harness.study.record_files import NESTED, RECORDS
from harness.study.schema import SCHEMA

Record = dict[str, Any]

DEEPEST = 32
"""Levels of objects and lists that a record may have; records are written with five."""
NAMES = {
    "float": "a number",
    "int": "a whole number",
    "str": "text",
    "bool": "true or false",
    "object": "an object",
    "array": "a list",
}
"""What types are called in messages."""


class LineError(ValueError):
    """A line that is no record of its kind; says what is wrong with it."""


def shown(value: Any, longest: int = 40) -> str:
    """Return a value as messages show it: in one line, however long it is and whatever characters it has."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def to_line(data: Record) -> bytes:
    """Return a record as its line of JSON, the newline included."""
    return (json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False) + "\n").encode()


def parse_line(raw: bytes, kind: str) -> Record:
    """Return the record that a line holds. Raises LineError where it is none of this kind."""
    try:
        data = msgspec.json.decode(raw)
    except (msgspec.DecodeError, RecursionError) as error:
        raise LineError(_not_json(raw, str(error))) from None
    if not isinstance(data, dict):
        raise LineError(f"{NAMES['array'] if isinstance(data, list) else shown(data)} instead of an object")
    check_record(data, kind)
    return data


def check_record(data: Record, kind: str) -> None:
    """Raise LineError where an object is no record of a kind."""
    if "schema" in data and data["schema"] != SCHEMA:
        raise LineError(
            f"a record of schema {shown(data['schema'])}, this version reads {SCHEMA}: read it with the version "
            "of the harness that wrote it"
        )
    fields = _fields(kind)
    if missing := [name for name, required in fields.items() if required and name not in data]:
        raise LineError(f"{', '.join(missing)} missing{_hint(data, kind)}")
    if unknown := [name for name in data if name not in fields]:
        raise LineError(
            f"a field that is not known, {', '.join(map(shown, unknown[:3]))}: was it written by a newer version of the "
            "harness? Read it with that version"
        )
    if not _is_shallow(data, DEEPEST):
        raise LineError(f"nested more than {DEEPEST} deep")
    _convert(data, RECORDS[kind])
    for name, fields_read in NESTED.get(kind, {}).items():
        if name in data:
            _convert(data[name], fields_read, name)


@lru_cache
def _fields(kind: str) -> dict[str, bool]:
    """Return the fields of a kind, and whether every record has them. The schema is written into every record."""
    no_default = dataclasses.MISSING
    return {
        field.name: field.name == "schema" or (field.default is no_default and field.default_factory is no_default)
        for field in dataclasses.fields(RECORDS[kind])
    }


def _hint(data: Record, kind: str) -> str:
    """Return ": is it a line of FILE?" for an object with the fields of another kind."""
    for other in RECORDS:
        fields = _fields(other)
        if other != kind and data.keys() <= fields.keys() and all(name in data for name, req in fields.items() if req):
            return f": is it a line of {other}.jsonl?"
    return ""


def _convert(value: Any, fields_read: type, name: str = "") -> None:
    """Raise LineError where a value isn't of a type; `name` is the field that holds it."""
    try:
        msgspec.convert(value, fields_read)
    except msgspec.ValidationError as error:
        raise LineError(_explain(str(error), value, name)) from None


def _explain(text: str, value: Any, name: str) -> str:
    """Return msgspec's message in the words of these records: the field first, and what it holds where that is short."""
    problem, _, place = text.partition(" - at `$")
    path = place.rstrip("`").lstrip(".")
    problem = re.sub(r"^Object missing required field `(.*)`$", r"\1 missing", problem)
    problem = re.sub(r"`([a-z |]+)`", lambda match: _type_names(match[1]), problem)
    problem = re.sub(r"text matching regex '\^\((.*)\)\$'", lambda match: match[1].replace("|", " or "), problem)
    if ", got " not in problem:
        value = _at(value, path)
        problem += f", got {shown(value)}" if isinstance(value, str | int | float) else ""
    field = ".".join(filter(None, [name, path]))
    return f"{field}: {problem[0].lower()}{problem[1:]}" if field else problem


def _type_names(types: str) -> str:
    return " or ".join(NAMES.get(name, name) for name in types.split(" | "))


def _at(value: Any, path: str) -> Any:
    """Return what is at a path of names and positions, `a.b[0]`; None where it isn't that simple."""
    for name, position in re.findall(r"([A-Za-z_]\w*)|\[(\d+)\]", path):
        try:
            value = value[name] if name else value[int(position)]
        except (LookupError, TypeError):
            return None
    return value


def _not_json(raw: bytes, problem: str) -> str:
    """Return why a line is no JSON; of a number that is none, its field."""
    try:
        path = _not_finite(json.loads(raw.decode()))
    except UnicodeDecodeError as error:
        return f"not UTF-8 (byte {error.start})"
    except RecursionError:
        return f"nested more than {DEEPEST} deep"
    except ValueError as error:
        return f"not JSON ({error})" if raw.strip() else "an empty line"
    return f"not JSON ({problem})" if path is None else f"{path}: NaN, Infinity and what is larger are no numbers here"


def _not_finite(value: Any, path: str = "") -> str | None:
    """Return the path of the first number that is not finite; None where there is none."""
    if isinstance(value, float):
        return None if math.isfinite(value) else path
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, part in parts:
        inner = f"{path}[{name}]" if isinstance(name, int) else f"{path}.{name}".lstrip(".")
        if (at := _not_finite(part, inner)) is not None:
            return at
    return None


def _is_shallow(value: Any, levels: int) -> bool:
    """Return whether a value has at most so many levels of objects and lists."""
    if not isinstance(value, dict | list):
        return True
    if levels == 0:
        return False
    for part in value.values() if isinstance(value, dict) else value:  # most are neither: no call for those
        if isinstance(part, dict | list) and not _is_shallow(part, levels - 1):
            return False
    return True
