"""The lines of a Pareto picture: their rows, names and looks, the same in all its panels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from harness.report.figures import style
from harness.report.figures.pareto_axes import DECODE, Axis
from harness.report.lines import rows_by_line
from harness.report.row_texts import FULL
from harness.report.rows import Row

Looks = Mapping[str, style.Look]
"""Colour and marker by what `colour_name` says of a row."""


class LineLook(NamedTuple):
    """Colour, marker and dash of a line."""

    colour: str
    marker: str
    dash: style.Dash


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


def line_looks_of(rows: Sequence[Row], axis: Axis, looks: Looks, *, with_native: bool) -> dict[str, LineLook]:
    """Return how each line of the figure is drawn, the same in all panels.

    Lines of a method share its colour. The first one is solid and has its marker; each of the others has another dash, which a
    line of one point can't show, and another marker.
    """
    drawn: Counter[str] = Counter()
    line_looks = {}
    for name, members in sorted(lines_of(line_rows(rows, with_native=with_native), axis).items()):
        method = colour_name(members[0])
        colour, marker = looks[method]
        number, markers = drawn[method], style.MARKERS
        turned = markers[(markers.index(marker) + number) % len(markers)]
        line_looks[name] = LineLook(colour, turned, style.DASHES[number % len(style.DASHES)])
        drawn[method] += 1
    return line_looks
