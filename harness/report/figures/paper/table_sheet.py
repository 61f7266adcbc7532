"""A table as a picture: published rows in grey, then rows of ours, in columns that line up."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.core.printable import cut
from harness.report.figures.looks import GREY, INK, is_bound
from harness.report.figures.paper import sheet
from harness.report.rows import Row
from harness.study.schema import Status

ROW, FIRST = 0.17, 0.34
"""Inches of a row, and the share of the width that the first column has."""
LETTERS, WIDE_LETTERS = 42, 105
"""Letters of a name at most, and of a heading."""
NOTHING = "–"
"""What stands where there is no value."""


@dataclass(frozen=True)
class TableRow:
    """A row of a table; one without cells is a heading of those below it."""

    name: str
    cells: Sequence[str] = ()
    published: bool = False


def draw_table(title: str, columns: Sequence[str], rows: Sequence[TableRow], note: str, *, first: float = FIRST) -> Figure:
    """Return the picture of a table. first: the share of the width that its first column has."""
    height = ROW * (len(rows) + 1)
    figure = sheet.new_sheet(sheet.PAGE, height + 0.4, title)
    with matplotlib.rc_context(sheet.RC):
        axes = figure.add_subplot()
        axes.set_axis_off()
        axes.set(xlim=(-0.004, 1), ylim=(len(rows) + 1, 0))
        step = (1 - first) / max(1, len(columns))
        ends = [first + step * (place + 1) for place in range(len(columns))]
        for name, end in zip(columns, ends, strict=True):
            axes.text(end, 0.5, name, ha="right", va="center", fontweight="bold")
        axes.plot([0, 1], [1, 1], color=INK, linewidth=0.8)
        for place, row in enumerate(rows, 1):
            _draw_row(axes, row, place + 0.5, ends)
            if not row.cells and place > 1:
                axes.plot([0, 1], [place, place], color="#d0d0d0", linewidth=0.6)
        sheet.finish(figure, note)
    return figure


def _draw_row(axes: Axes, row: TableRow, height: float, ends: Sequence[float]) -> None:
    colour = GREY if row.published else INK
    weight = "normal" if row.cells else "bold"
    name = cut(row.name, LETTERS if row.cells else WIDE_LETTERS)
    axes.text(0.012 if row.cells else 0, height, name, va="center", color=colour, fontweight=weight)
    for text, end in zip(row.cells, ends, strict=bool(row.cells)):
        axes.text(end, height, text, ha="right", va="center", color=colour)


def of_method(name: str, rows: Iterable[Row]) -> str:
    """Return the name of a line of these rows, and that it is a bound where it is one."""
    return f"{name}, a bound" if any(is_bound(row.method) for row in rows) else name


def accuracy(row: Row | None) -> str:
    """Return the accuracy of a row in per cent as a cell has it, in brackets where a check holds it back."""
    if row is None:
        return NOTHING
    text = number(row.scored.percent)
    return f"[{text}]" if row.status == Status.GATED else text


def held_back(rows: Iterable[Row]) -> str:
    """Return what brackets mean, where a cell has some."""
    return "In brackets: held back by a check. " if any(row.status == Status.GATED for row in rows) else ""


def number(value: float | None, form: str = ".1f") -> str:
    """Return a value as a cell has it."""
    return NOTHING if value is None else f"{value:{form}}"
