"""Whole numbers in files of searches: a fraction, a word or a truth value is none, and is not made one."""

from __future__ import annotations

from typing import Any


def whole(value: Any) -> int:
    """Return a whole number of JSON as it is. Raises ValueError for anything else."""
    if type(value) is not int:
        raise ValueError(f"{value!r} is no whole number")
    return value
