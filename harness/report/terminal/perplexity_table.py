"""The table of perplexities in the terminal: a line for each arm, length and text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from harness.report.leaderboard import Row
from harness.report.variants import lines

HEADINGS = ("method", "len", "dens", "docs", "perplexity", "÷ dense", "p", "tokens/s")


def show(console: Console, rows: Sequence[Row]) -> None:
    """Print the rows of perplexity, if there are any; their texts are named above."""
    if not rows:
        return
    texts = ", ".join(sorted({str(r["haystack"]) for r in rows}))
    title = f"perplexity of {rows[0]['model']} on {texts}, with its 95 % interval"
    table = Table(title=title, box=None, padding=(0, 1, 0, 0), title_justify="left", title_style="bold", header_style="dim")
    for name in HEADINGS:
        table.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)
    names = {id(row): name for name, members in lines(rows).items() for row in members}
    for row in rows:
        table.add_row(names[id(row)], *_cells(row))
    console.print(table)
    console.print()


def _cells(row: Row) -> list[str]:
    shown = [str(row["length"]), _number(row["density"], ".3f"), str(row["samples"])]
    if row["perplexity"] is None:
        return [*shown, str(row["status"]), "", "", ""]
    between = "" if row["perplexity_low"] is None else f" [dim]{row['perplexity_low']:.4g}–{row['perplexity_high']:.4g}[/]"
    p = row["p_value"]
    return [
        *shown,
        f"{row['perplexity']:.4g}{between}",
        _number(row["perplexity_ratio"], ".4f"),
        "" if p is None else "<.001" if p < 0.001 else f"{p:.3f}",
        _number(row["tokens_s"], ",.0f"),
    ]


def _number(value: Any, form: str) -> str:
    return "" if value is None else f"{value:{form}}"
