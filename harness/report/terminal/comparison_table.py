"""The tables of job=compare in the terminal: every line beside one of them."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from harness.report.compare import LinePair, by_panel
from harness.report.row_texts import question_title
from harness.report.terminal import formats
from harness.study.schema import Status

HEADINGS = ("line", "sparsity", "density", "acc.", "diff.", "95 %", "p (Holm)")


def show_pairs(console: Console, pairs: Sequence[LinePair]) -> None:
    """Print a table for every model, device, length and time of the question."""
    for (model, device, length, question), members in by_panel(pairs).items():
        where = f"{model} at {length} tokens on {device}{question_title(question)}"
        table = formats.plain_table(f"accuracy (%) beside {pairs[0].beside}: {where}")
        for heading in HEADINGS:
            table.add_column(heading, justify="left" if heading == "line" else "right", no_wrap=heading != "line")
        for pair in members:
            table.add_row(
                pair.line + (" (gated)" if pair.status == Status.GATED else ""),
                f"{pair.sparsity:g}",
                formats.number(pair.density, ".3f"),
                f"{100 * pair.accuracy:.1f}",
                f"{100 * pair.difference:+.1f}",
                f"{100 * pair.difference_low:+.1f} to {100 * pair.difference_high:+.1f}",
                f"{pair.p_holm:.3f}",
            )
        console.print(table)
        console.print()
