"""Checks of single settings: each returns the value, or raises UserError with one line that says what would be right."""

from __future__ import annotations

from typing import Any

from harness.core.errors import UserError


def whole_number(name: str, value: Any, low: int) -> int:
    """Return `value` if it is a whole number of at least `low`. Raises UserError naming the setting and its range."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise UserError(f"{name}={value}: must be a whole number of at least {low}")
    return value


def seconds(name: str, value: Any) -> float:
    """Return `value` as a positive number of seconds. Raises UserError naming the setting and its range."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e6:
        raise UserError(f"{name}={value}: must be a number of seconds above 0")
    return float(value)


def true_or_false(name: str, value: Any) -> bool:
    """Return `value` if it is true or false. Raises UserError naming the setting otherwise."""
    if not isinstance(value, bool):
        raise UserError(f"{name}={value}: must be true or false")
    return value


def share(name: str, value: Any) -> float:
    """Return `value` if it is a share of the accuracy, above 0 and below 1. Raises UserError otherwise."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        raise UserError(f"{name}={value}: must be a share of the accuracy, above 0 and below 1, for example 0.02")
    return float(value)
