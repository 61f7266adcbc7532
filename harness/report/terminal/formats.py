"""How numbers, names and tables look in the terminal; what wasn't measured is an empty cell."""

from __future__ import annotations

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
    """A table whose cells are shown as they are, each in one line: names are data. A cell of several styles is a Text.
    Its caption stands above it and may be wider than the table, which rich's own title may not. `show` prints it: where the
    terminal is too narrow its lines run over, as rich would cut digits off numbers and leave whole columns out."""

    def __init__(self, above: str) -> None:
        """Make a table without lines, so that it fits a terminal of 80 columns. above: its caption."""
        super().__init__(box=None, padding=(0, PADDING, 0, 0), header_style="dim")
        self.above = Text(printable(above), style="bold")

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the caption and the table."""
        yield self.above
        widths = [_least_width(column, console, options) + PADDING for column in self.columns]
        yield from super().__rich_console__(console, options.update(width=max(options.max_width, sum(widths))))

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
