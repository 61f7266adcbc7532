"""How numbers, names and tables look in the terminal; what wasn't measured is an empty cell."""

from __future__ import annotations

from rich.table import Table


def plain_table(title: str) -> Table:
    """Return a table without lines, so that it fits a terminal of 80 columns."""
    return Table(title=title, box=None, padding=(0, 1, 0, 0), title_justify="left", title_style="bold", header_style="dim")


def number(value: float | None, form: str) -> str:
    """Return a number in a format such as ".3f"."""
    return "" if value is None else f"{value:{form}}"


def percent(share: float | None) -> str:
    """Return a share in whole per cent."""
    return "" if share is None else f"{100 * share:.0f}"


def milliseconds(value: float | None, *, below_one: int = 2) -> str:
    """Return milliseconds with three digits, without an exponent; below 1 with `below_one` (at most 3) decimals, cut off."""
    if value is None:
        return ""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.3f}"[: 2 + below_one if value < 1 else 4]


def p_value(value: float | None) -> str:
    """Return a p-value with three decimals, or that it is below what they can say."""
    return "" if value is None else "<.001" if value < 0.001 else f"{value:.3f}"


def tokens(length: int) -> str:
    """Return 4096 as "4k"; a length that is no multiple of 1024 as it is."""
    return f"{length // 1024}k" if length % 1024 == 0 else str(length)
