"""Checks of single settings: each returns the value, or raises UserError with one line that says what would be right."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.core.errors import UserError
from harness.core.printable import cut

LONGEST_STUDY = 128
"""Letters of a study's name: the files in its folder have names of their own, and paths an end."""
STUDY = re.compile(rf"[A-Za-z0-9_][A-Za-z0-9_.+-]{{0,{LONGEST_STUDY - 1}}}")
"""What a study may be called."""

_READS_AS_VALUE = re.compile(r"\s*(?:[+-]?[\d.]+(?:e[+-]?\d+)?|true|false|null|none)\s*", re.IGNORECASE)

LONGEST_NAME, LONGEST_PATH = 255, 4000
"""Bytes of a name and letters of a path that file systems take."""


def whole_number(name: str, value: Any, low: int | None = None, high: int | None = None) -> int:
    """Return `value` if it is a whole number from `low` to `high`, where these are given. Raises UserError otherwise."""
    if not _is_whole(value, low, high):
        raise UserError(f"{_given(name, value)}: must be {_whole_numbers(low, high)}")
    return int(value)


def whole_number_or_null(name: str, value: Any, low: int | None = None, high: int | None = None) -> int | None:
    """Return `value` if it is null (None) or a whole number from `low` to `high`. Raises UserError otherwise."""
    if value is not None and not _is_whole(value, low, high):
        raise UserError(f"{_given(name, value)}: must be null or {_whole_numbers(low, high)}")
    return None if value is None else int(value)


def _is_whole(value: Any, low: int | None, high: int | None) -> bool:
    whole = isinstance(value, int) and not isinstance(value, bool)  # True is an int to Python
    return whole and (low is None or value >= low) and (high is None or value <= high)


def _whole_numbers(low: int | None, high: int | None) -> str:
    """Say which whole numbers are right."""
    limits = [f"at {word} {limit}" for word, limit in (("least", low), ("most", high)) if limit is not None]
    return "a whole number" + (f" of {' and '.join(limits)}" if limits else "")


def numbers_or_null(name: str, value: Any) -> None:
    """Raise UserError unless `value` is null (None), a whole number of at least 0, or a list of such numbers."""
    listed = value if isinstance(value, list) else [value]
    if value is not None and not (listed and all(_is_whole(number, 0, None) for number in listed)):
        raise UserError(f"{_given(name, value)}: must be null, a whole number of at least 0, or a list of such numbers")


def number(name: str, value: Any) -> float:
    """Return `value` as a float if it is a finite number. Raises UserError otherwise."""
    if not _is_number(value) or not math.isfinite(value):
        raise UserError(f"{_given(name, value)}: must be a finite number")
    return float(value)


def number_or_null(name: str, value: Any) -> float | None:
    """Return `value` if it is null (None) or a finite number, a whole one as it is. Raises UserError otherwise."""
    if value is not None and not (_is_number(value) and math.isfinite(value)):
        raise UserError(f"{_given(name, value)}: must be null or a finite number")
    return value


def _given(name: str, value: Any) -> str:
    """Return NAME=VALUE, the value in quotes where it is a text that reads as the number or the word that would be right."""
    return f"{name}={value!r}" if isinstance(value, str) and _READS_AS_VALUE.fullmatch(value) else f"{name}={value}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def seconds(name: str, value: Any) -> float:
    """Return `value` if it is a number of seconds above 0 and below a million. Raises UserError otherwise."""
    if not _is_number(value) or not 0 < value < 1e6:
        raise UserError(f"{_given(name, value)}: must be a number of seconds above 0")
    return float(value)


def minutes_or_null(name: str, value: Any) -> float | None:
    """Return `value` if it is null (None) or a number of minutes above 0 and below a million. Raises UserError otherwise."""
    if value is not None and (not _is_number(value) or not 0 < value < 1e6):
        raise UserError(f"{_given(name, value)}: must be null or a number of minutes above 0")
    return None if value is None else float(value)


def true_or_false(name: str, value: Any) -> bool:
    """Return `value` if it is true or false. Raises UserError otherwise."""
    if not isinstance(value, bool):
        raise UserError(f"{_given(name, value)}: must be true or false")
    return value


def share(name: str, value: Any) -> float:
    """Return `value` if it is a share of the accuracy, above 0 and below 1. Raises UserError otherwise."""
    if not _is_number(value) or not 0 < value < 1:
        raise UserError(f"{_given(name, value)}: must be a share of the accuracy, above 0 and below 1, for example 0.02")
    return float(value)


def sparsity(name: str, value: Any) -> float | None:
    """Return `value` if it is null (None) or a share of blocks to leave out, from 0 to below 1. Raises UserError otherwise."""
    if value is None:
        return None
    if not _is_number(value) or not 0 <= value < 1:
        raise UserError(f"{_given(name, value)}: must be at least 0 (keep every block) and below 1, for example 0.9")
    return float(value)


def study_name(name: str, value: Any) -> str:
    """Return `value` if a study may be called so: in letters that a shell, a file system, a spreadsheet and a page all take as
    they are. Raises UserError otherwise."""
    study = text(name, value)
    if not STUDY.fullmatch(study):
        raise UserError(
            f"{name}={cut(study, LONGEST_STUDY)}: must be the name of a folder below results=, for example study=mine: at most "
            f"{LONGEST_STUDY} letters, digits and any of _ - + . that begin with a letter, a digit or _"
        )
    return study


def text_or_null(name: str, value: Any) -> str | None:
    """Return `value` as a text, if it is one or a number, and None for null. Raises UserError for anything else."""
    return None if value is None else text(name, value)


def text(name: str, value: Any) -> str:
    """Return `value` as a text, if it is one or a number. Raises UserError for null, nothing, a list or a group of settings."""
    if value is None or value == "" or isinstance(value, bool | list | dict):
        raise UserError(f"{name}={'null' if value is None else value}: must be a name or a path")
    if not str(value).strip():
        raise UserError(f"{name}={value}: must be a name or a path, and is nothing but blanks")
    if any(c == "\0" or "\ud800" <= c <= "\udfff" for c in str(value)):  # no file system and no record takes them
        raise UserError(f"{name}={value}: must be a name or a path in UTF-8, without NUL")
    return str(value)


def texts(settings: Any, name: str = "") -> None:
    """Raise UserError where a text among settings, at any depth, can name nothing: no file system takes it, and no record.

    settings: a value, or a dict or list of them; name: dotted, of the setting that they are of.
    """
    if isinstance(settings, Mapping):
        for key, value in settings.items():
            texts(value, f"{name}.{key}" if name else str(key))
    elif isinstance(settings, list):
        for value in settings:
            texts(value, name)
    elif isinstance(settings, str) and (reason := _unfit(settings)):
        raise UserError(f"{name}={_cut(settings)}: {reason}")


def _unfit(value: str) -> str | None:
    """Return why a text can name nothing; None where it can."""
    try:
        parts = [os.fsencode(part) for part in value.split("/")]
        value.encode()
    except UnicodeError:
        return "is no UTF-8 text"
    if "\0" in value:
        return "has a null character; it must be text"
    if max(map(len, parts)) > LONGEST_NAME:
        return f"a name of {max(map(len, parts))} bytes; a name may have {LONGEST_NAME}"
    if len(value) > LONGEST_PATH:
        return f"a path of {len(value)} letters; a path may have {LONGEST_PATH}"
    try:
        Path(value).expanduser()
    except RuntimeError:
        return f"there is no user {value.partition('/')[0].lstrip('~')}"
    return None


def _cut(value: str) -> str:
    """Return the beginning of a text that is too long to show."""
    return value if len(value) <= 80 else f"{value[:60]}…"
