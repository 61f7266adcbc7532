"""The table of a study of kernels in the terminal: a line for each case."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from harness.measure.kernel_speed.cases import DECODE, TRAINING
from harness.report.kernel_rows import KernelRow
from harness.report.terminal import formats
from harness.study.schema import Status

MOST = 40
"""Rows up to which all are shown; of more, those at the longest length and the sparsity nearest to PREFERRED."""
PREFERRED = 0.9
"""The sparsity that is shown where there are too many."""
HEADINGS = (
    "len",
    "batch",
    "index",
    "kernel",
    "block",
    "dens",
    "select\nms",
    "attn\nms",
    "total\nms",
    "speed\nup",
    "%\nideal",
)
WORDS = ("index", "kernel")
"""Headings of columns that hold words."""
CALLS = {DECODE: ", one step of decoding", TRAINING: ", forward and backward"}
"""What a call is, in the title of a table; a prefill where nothing is said."""


def show_kernels(console: Console, rows: Sequence[KernelRow]) -> None:
    """Print the rows that have a time (of many, those at the longest length), a table a phase, and how many have none."""
    timed = [row for row in rows if row.times.total_ms is not None or row.times.selection_ms is not None]
    for phase in dict.fromkeys(row.phase for row in timed):
        members = [row for row in timed if row.phase == phase]
        shown = members if len(members) <= MOST else _longest(members)
        console.print()
        _table(shown).show(console)
        if hidden := len(members) - len(shown):
            console.print(f"and {hidden} more rows in the CSV", style="dim")
    for status in (Status.FAILED, Status.GATED):
        if count := sum(row.status == status for row in rows):
            console.print(f"{count} rows {status}: the column `reason` says why", style="yellow", markup=False)


def _longest(rows: Sequence[KernelRow]) -> list[KernelRow]:
    """Return the rows at the longest length: those without a sparsity, and those at the one nearest to PREFERRED."""
    length = max(row.length for row in rows)
    sparsities = [row.sparsity for row in rows if row.sparsity is not None]
    nearest = min(sparsities, key=lambda sparsity: abs(sparsity - PREFERRED), default=None)
    return [row for row in rows if row.length == length and row.sparsity in (None, nearest)]


def _table(rows: Sequence[KernelRow]) -> formats.PlainTable:
    above = f"{rows[0].shape} on {rows[0].device}{CALLS.get(rows[0].phase, '')}"
    table = formats.PlainTable(above, keys=HEADINGS.index("dens") + 1)
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading in WORDS else "right", no_wrap=True)
    for row in rows:
        times = (row.times.selection_ms, row.times.attention_ms, row.times.total_ms)
        table.add_row(
            formats.tokens(row.length),
            str(row.batch),
            row.index_name,
            row.kernel or "–",
            formats.number(row.block_size, "d"),
            formats.number(row.density, ".3f"),
            *(formats.milliseconds(time, below_one=3) for time in times),
            formats.number(row.times.speedup, ".2f"),
            formats.number(row.times.pct_ideal, ".0f"),
        )
    return table
