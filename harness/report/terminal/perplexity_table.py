"""The table of perplexities in the terminal: a line for each arm, length and text."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from harness.report.lines import line_names
from harness.report.rows import Row
from harness.report.terminal import formats
from harness.report.terminal.match_marks import explain_marks, marked_density

HEADINGS = ("method", "len", "dens", "docs", "perplexity", "÷ dense", "p", "tokens/s")


def show_perplexities(console: Console, rows: Sequence[Row]) -> None:
    """Print the rows of perplexity, a table for each model, device and text."""
    names = line_names(rows)
    for model, device, text in dict.fromkeys((row.model, row.device, row.haystack) for row in rows):
        members = [row for row in rows if (row.model, row.device, row.haystack) == (model, device, text)]
        table = formats.PlainTable(f"perplexity of {model} on {text}, with its 95 % interval", keys=3)
        for heading in HEADINGS:
            table.add_column(heading, justify="left" if heading == "method" else "right", no_wrap=heading != "method")
        for row in members:
            table.add_row(names[id(row)], *_cells(row))
        table.show(console)
        explain_marks(console, members)
        console.print()


def _cells(row: Row) -> list[str | Text]:
    cells: list[str | Text] = [str(row.length), marked_density(row), str(row.samples)]
    measured = row.perplexity
    if measured is None:
        return [*cells, row.status, "", "", ""]
    number, low, high = f"{measured.perplexity:.4g}", measured.perplexity_low, measured.perplexity_high
    ratio = None if measured.comparison is None else measured.comparison.perplexity_ratio
    return [
        *cells,
        number if low is None else formats.with_interval(number, f"{low:.4g}–{high:.4g}"),
        formats.number(ratio, ".4f"),
        formats.p_value(row.p_value),
        formats.number(measured.tokens_s, ",.0f"),
    ]
