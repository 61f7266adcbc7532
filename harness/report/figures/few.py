"""The best few of many lines: more than ten in one panel are a thicket, in which nobody finds one."""

from __future__ import annotations

from collections.abc import Callable, Iterable

MOST = 10
"""Lines of a panel that are told apart, dense attention's among them."""


def best_few(names: Iterable[str], order: Callable[[str], object], most: int = MOST) -> list[str]:
    """Return the names of the lines that are told apart: all where they are at most so many, else the first in an order."""
    everyone = list(names)
    return everyone if len(everyone) <= most else sorted(everyone, key=lambda name: (order(name), name))[:most]  # type: ignore[type-var]
