"""The lines of a Pareto picture: their rows, names and looks, the same in all its panels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from harness.report.figures import style
from harness.report.figures.pareto_axes import DECODE, Axis
from harness.report.lines import rows_by_line
from harness.report.row_texts import FULL
from harness.report.rows import Row

Looks = Mapping[str, style.Look]
"""Colour and marker by what `colour_name` says of a row."""


def line_rows(rows: Sequence[Row], *, with_native: bool) -> list[Row]:
    """Return the rows that make lines; points at native defaults are part of one only with_native."""
    return [row for row in rows if not row.is_baseline and (with_native or row.sparsity is not None)]


def colour_name(row: Row) -> str:
    """Return whose colour a row has: its method, or the one that decodes after a dense prefill."""
    return row.method if row.block_size is not None else row.decode.method or FULL


def lines_of(rows: Sequence[Row], axis: Axis) -> dict[str, list[Row]]:
    """Return the lines of a panel by the names that stand at them. After a dense prefill they are told apart by what decodes:
    "dense (quest)" is quest there."""
    if axis is not DECODE:
        return rows_by_line(rows)
    lines = rows_by_line(rows, along="decode_density")
    return {name.partition(" (")[2].removesuffix(")") or colour_name(members[0]): members for name, members in lines.items()}


def dashes_of(rows: Sequence[Row], axis: Axis, *, with_native: bool) -> dict[str, style.Dash]:
    """Return how each line of the figure is drawn, the same in all panels: a method's first one solid."""
    drawn: Counter[str] = Counter()
    dashes = {}
    for name, members in sorted(lines_of(line_rows(rows, with_native=with_native), axis).items()):
        method = colour_name(members[0])
        dashes[name] = style.DASHES[drawn[method] % len(style.DASHES)]
        drawn[method] += 1
    return dashes
