"""The best few of many lines: more than ten in one panel are a thicket, in which nobody finds one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

MOST = 10
"""Lines of a panel that are told apart, dense attention's among them."""
Line = TypeVar("Line")


def best_few(lines: Iterable[Line], order: Callable[[Line], Any], most: int = MOST) -> list[Line]:
    """Return the lines that are told apart: all where they are at most so many, else the first in an order, the smallest first;
    of equal ones those that come first."""
    everyone = list(lines)
    return everyone if len(everyone) <= most else sorted(everyone, key=order)[:most]
