"""Checks of single settings: each returns the value, or raises UserError with one line that says what would be right."""

from __future__ import annotations

import re
from typing import Any

from harness.core.errors import UserError
from harness.core.printable import cut

LONGEST_STUDY = 128
"""Letters of a study's name: the files in its folder have names of their own, and paths an end."""
STUDY = re.compile(rf"[A-Za-z0-9_][A-Za-z0-9_.+-]{{0,{LONGEST_STUDY - 1}}}")
"""What a study may be called."""


def whole_number(name: str, value: Any, low: int | None = None, high: int | None = None) -> int:
    """Return `value` if it is a whole number from `low` to `high`, where these are given. Raises UserError otherwise."""
    if not _is_whole(value, low, high):
        raise UserError(f"{name}={value}: must be {_whole_numbers(low, high)}")
    return int(value)


def whole_number_or_null(name: str, value: Any, low: int | None = None, high: int | None = None) -> int | None:
    """Return `value` if it is null (None) or a whole number from `low` to `high`. Raises UserError otherwise."""
    if value is not None and not _is_whole(value, low, high):
        raise UserError(f"{name}={value}: must be null or {_whole_numbers(low, high)}")
    return None if value is None else int(value)


def _is_whole(value: Any, low: int | None, high: int | None) -> bool:
    whole = isinstance(value, int) and not isinstance(value, bool)  # True is an int to Python
    return whole and (low is None or value >= low) and (high is None or value <= high)


def _whole_numbers(low: int | None, high: int | None) -> str:
    """Say which whole numbers are right."""
    limits = [f"at {word} {limit}" for word, limit in (("least", low), ("most", high)) if limit is not None]
    return "a whole number" + (f" of {' and '.join(limits)}" if limits else "")


def number(name: str, value: Any) -> float:
    """Return `value` as a float if it is a number. Raises UserError otherwise."""
    if not _is_number(value):
        raise UserError(f"{name}={value}: must be a number")
    return float(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def seconds(name: str, value: Any) -> float:
    """Return `value` if it is a number of seconds above 0 and below a million. Raises UserError otherwise."""
    if not _is_number(value) or not 0 < value < 1e6:
        raise UserError(f"{name}={value}: must be a number of seconds above 0")
    return float(value)


def true_or_false(name: str, value: Any) -> bool:
    """Return `value` if it is true or false. Raises UserError otherwise."""
    if not isinstance(value, bool):
        raise UserError(f"{name}={value}: must be true or false")
    return value


def share(name: str, value: Any) -> float:
    """Return `value` if it is a share of the accuracy, above 0 and below 1. Raises UserError otherwise."""
    if not _is_number(value) or not 0 < value < 1:
        raise UserError(f"{name}={value}: must be a share of the accuracy, above 0 and below 1, for example 0.02")
    return float(value)


def sparsity(name: str, value: Any) -> float | None:
    """Return `value` if it is null (None) or a share of blocks to leave out, from 0 to below 1. Raises UserError otherwise."""
    if value is None:
        return None
    if not _is_number(value) or not 0 <= value < 1:
        raise UserError(f"{name}={value}: must be at least 0 (keep every block) and below 1, for example 0.9")
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
