"""How numbers, names and tables look in the terminal; what wasn't measured is an empty cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.style import Style
from rich.table import Column, Table
from rich.text import Text

from harness.core.printable import printable

NAME = 12
"""Characters that are counted for a column whose cells may be folded, in any terminal; fewer where its words are shorter."""
PADDING = 1
"""Spaces after a cell."""
WIDEST = 10_000
"""Characters of a line that holds any table."""


class PlainTable(Table):
    """A table whose cells are shown as they are: names are data. A cell of several styles is a Text.
    Its caption stands above it and may be wider than the table, which rich's own title may not. `show` prints it whole, as rich
    would cut digits off numbers and leave columns out: where the terminal is too narrow for all columns, those that have no
    room stand in a table below, behind the same first columns. Where these alone are too wide, lines run over."""

    def __init__(self, above: str, *, keys: int = 1) -> None:
        """Make a table without lines, so that it fits a terminal of 80 columns. above: its caption; keys: how many columns at
        the left say what a row is, and stand in each of its parts."""
        super().__init__(box=None, padding=(0, PADDING, 0, 0), header_style="dim")
        self.above, self.keys = Text(printable(above), style="bold"), keys

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the caption and the table, or its parts one below the other."""
        yield self.above
        widths = [_least_width(column, console, options) + PADDING for column in self.columns]
        for chosen in _parts(widths, self.keys, options.max_width):
            width = max(options.max_width, sum(widths[i] for i in chosen))
            yield from Table.__rich_console__(self._part(chosen), console, options.update(width=width))

    def _part(self, chosen: Sequence[int]) -> Table:
        """Return the table of some of its columns."""
        if len(chosen) == len(self.columns):
            return self
        part = Table(box=None, padding=(0, PADDING, 0, 0), header_style="dim")
        part.rows = self.rows
        for place, i in enumerate(chosen):
            column = replace(self.columns[i], _index=place)
            part.columns.append(column)
        return part

    def show(self, console: Console) -> None:
        """Print it, whole."""
        console.print(self, crop=False)

    def add_column(self, *args: Any, **options: Any) -> None:
        """Add a column, as rich does; what is too wide for it and may not be cut goes on in the next line."""
        super().add_column(*args, **{"overflow": "fold"} | options)

    def add_row(self, *cells: RenderableType | None, style: str | Style | None = None, end_section: bool = False) -> None:
        """Add a row."""
        texts = (Text(printable(cell)) if isinstance(cell, str) else cell for cell in cells)
        super().add_row(*texts, style=style, end_section=end_section)


def _parts(widths: Sequence[int], keys: int, room: int) -> list[list[int]]:
    """Return the columns of every part of a table by their places: as many as there is room for, after the first `keys`, or as
    many of these as leave room for any other column. widths: in characters."""
    if sum(widths) <= room or len(widths) < 2:
        return [list(range(len(widths)))]
    most = max(range(1, min(keys, len(widths) - 1) + 1), key=lambda count: (_fits(widths, count, room), count))
    if not _fits(widths, most, room):
        most = 1
    if not _fits(widths, most, room):
        return [list(range(len(widths)))]
    first = list(range(most))
    parts: list[list[int]] = []
    for i in range(most, len(widths)):
        if not parts or sum(widths[k] for k in parts[-1]) + widths[i] > room:
            parts.append(list(first))
        parts[-1].append(i)
    return parts


def _fits(widths: Sequence[int], keys: int, room: int) -> bool:
    """Return whether each other column has room behind the first `keys`."""
    return sum(widths[:keys]) + max(widths[keys:]) <= room


def _least_width(column: Column, console: Console, options: ConsoleOptions) -> int:
    """Return the characters that a column needs so that no cell loses any."""
    wide = options.update(width=WIDEST)
    cells = [Measurement.get(console, wide, cell) for cell in (column.header, *column.cells)]
    if column.no_wrap:
        return max(cell.maximum for cell in cells)
    return min(NAME, max(cell.minimum for cell in cells))


def with_interval(value: str, interval: str) -> Text:
    """Return a cell that holds a number and, dim beside it, its interval."""
    return Text.assemble(value, " ", (interval, "dim"))


def heading(name: str, *details: str) -> Text:
    """Return the heading of a column that is called by a name, with what else it is told apart by below, a line each."""
    return Text("\n".join(map(printable, (name, *details))))


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
