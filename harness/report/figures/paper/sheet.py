"""The paper's sheet: pictures as wide as a column or a page, in letters that can be read there, as PNG and PDF of the same
bytes every time; and what stands in them alike: published values in grey, panels without rows, the legend, the small
print."""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from harness.core.files import write_atomically
from harness.core.printable import cut, printable
from harness.report.figures import style
from harness.report.figures.looks import DENSE_DASH, GREY, INK, PAPER, Dash, LineLook, Look, mixed
from harness.report.figures.signs import FADED
from harness.report.notes import off_density
from harness.report.rows import Row
from harness.study.schema import Status

COLUMN, PAGE = 3.3, 6.9
"""Inches of a column of a paper, and of its page."""
RC = style.RC | {
    "font.size": 7,
    "axes.titlesize": 7.5,
    "axes.labelsize": 7,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "legend.fontsize": 6.5,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2,
    "ytick.major.size": 2,
    "grid.linewidth": 0.5,
    "savefig.dpi": 160,
    "pdf.fonttype": 42,
}
"""Settings of matplotlib for a picture at its printed size."""
SMALL, TITLE = 6.0, 8.5
"""Points of the small print, and of the title."""
LETTER, KEY = 3.7, 34.0
"""Points of an average letter in the legend, and of the key beside it."""
PAD = 0.03
"""Inches around panels."""
LEGEND_ROW = 0.135
"""Inches of a row of the legend."""
PUBLISHED = ("#8c8c8c", "#a9a9a9", "#bfbfbf", "#707070")
"""Greys of published values, of the first series the first."""
PUBLISHED_MARKERS = "osD^"
"""Markers of published series."""
PER_INCH = 72.0


def new_sheet(width: float, height: float, title: str) -> Figure:
    """Return a figure of that many inches with its title, which needs no display; a title of several lines makes it
    higher."""
    lines = folded(title, width, TITLE, 0.62)
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(width, height + lines.count("\n") * TITLE * 1.25 / PER_INCH), layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle(lines, x=0.01, ha="left", fontsize=TITLE, fontweight="bold")
    return figure


def folded(text: str, width: float, points: float, letter: float = 0.53) -> str:
    """Return a text in lines that fit a width in inches, its letters being `letter` of their height wide on average."""
    columns = int(width * 0.985 * PER_INCH / (letter * points))
    return "\n".join(part for line in text.split("\n") for part in textwrap.wrap(cut(printable(line), 2000), columns))


def finish(figure: Figure, note: str, handles: Sequence[Artist] = (), columns: int = 1) -> None:
    """Write the legend, in `columns` at most, and the small print below a picture, which grows by their height."""
    width, height = figure.get_size_inches()
    longest = max((len(str(handle.get_label())) for handle in handles), default=0)
    columns = max(1, min(columns, int(width * PER_INCH / (longest * LETTER + KEY))))
    text = folded(note, width, SMALL)
    rows = -(-len(handles) // columns)
    text_height = (text.count("\n") + 1) * SMALL * 1.22 / PER_INCH + 0.05
    legend_height = rows * LEGEND_ROW + 0.08 if rows else 0.0
    whole = height + text_height + legend_height
    figure.set_size_inches(width, whole)
    below = (text_height + legend_height) / whole
    figure.set_layout_engine(ConstrainedLayoutEngine(h_pad=PAD, w_pad=PAD, rect=(0, below, 1, 1 - below)))
    figure.text(0.01, 0.03 / whole, text, fontsize=SMALL, color=GREY, va="bottom", linespacing=1.15)
    if rows:
        figure.legend(
            handles=list(handles),
            loc="upper left",
            bbox_to_anchor=(0.006, below),
            ncols=columns,
            frameon=False,
            handlelength=2.2,
            columnspacing=1.2,
            borderaxespad=0.0,
            borderpad=0.3,
            labelspacing=0.35,
        ).set_in_layout(False)


def set_empty(axes: Axes, text: str) -> None:
    """Mark a panel in which nothing can be drawn, saying why."""
    axes.set_facecolor("#f7f7f7")
    axes.grid(False)
    axes.set_xticks([])
    axes.set_yticks([])
    set_words(axes, text)


def set_words(axes: Axes, text: str, height: float = 0.5) -> None:
    """Write why nothing stands there into a panel, at a height in it."""
    axes.text(0.5, height, text, transform=axes.transAxes, ha="center", va="center", fontsize=SMALL, color=GREY)


def set_log(axes: Axes, low: float, high: float) -> None:
    """Give a logarithmic y axis plain numbers: 1, 2 and 5 where there are few of them, else whole powers of ten."""
    axes.set_yscale("log")
    few = high / low < 1000
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def set_lengths(axes: Axes, lengths: Sequence[int], most: int = 6) -> None:
    """Give an axis of lengths in tokens, which is logarithmic, a tick at each, or at so many of them at most."""
    ticks = lengths[:: -(-len(lengths) // most)]
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [style.tokens(length) for length in ticks])
    axes.minorticks_off()
    axes.set_xlim(lengths[0] / 1.25, lengths[-1] * 1.25)


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write a picture as NAME.png and NAME.pdf, and return the paths. Raises UserError where they can't be written."""
    style.show_as_written(figure)
    paths = []
    with matplotlib.rc_context(RC), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        for kind, metadata in (("png", {}), ("pdf", {"CreationDate": None, "ModDate": None})):
            picture = io.BytesIO()
            figure.savefig(picture, format=kind, metadata=metadata)
            paths.append(write_atomically(folder / f"{name}.{kind}", partial(_write, content=picture.getvalue())))
    return paths


def _write(file: BinaryIO, *, content: bytes) -> None:
    """Write bytes into a file."""
    file.write(content)


def draw_published(axes: Axes, number: int, xs: Sequence[float], ys: Sequence[float]) -> None:
    """Draw a published series, the `number` of its panel, in its grey."""
    colour, marker = published_look(number)
    axes.plot(xs, ys, color=colour, marker=marker, markersize=3, linewidth=0.9, zorder=2)


def published_look(number: int) -> Look:
    """Return the grey and the marker of a published series."""
    return Look(PUBLISHED[number % len(PUBLISHED)], PUBLISHED_MARKERS[number % len(PUBLISHED_MARKERS)])


def draw_mark(axes: Axes, x: float, y: float, look: LineLook, row: Row, *, ringed: bool = False) -> None:
    """Draw the marker of a row with its signs, as `harness.report.figures.signs` has them, at the size of this sheet."""
    hollow = off_density(row)
    face = "white" if hollow else look.colour
    faded = mixed(look.colour, PAPER, FADED)
    fill = "full" if hollow else look.fill
    points: dict[str, Any] = {"fillstyle": fill, "markerfacecolor": face, "markerfacecoloralt": faded, "markeredgewidth": 0.8}
    axes.plot(x, y, look.marker, color=look.colour, markersize=3.0 if hollow else 3.8, zorder=4, **points)
    if row.status == Status.GATED:
        axes.plot(x, y, "x", color=INK, markersize=5, markeredgewidth=0.6, zorder=5)
    if ringed:
        axes.plot(x, y, "o", color=INK, markerfacecolor="none", markersize=7, markeredgewidth=0.5, zorder=3)


def published_key(number: int, series: str, *, dense: bool = False, how: str = "published") -> Line2D:
    """Return the legend's key of a published series; dense: one that is a dashed line; how: what its values are."""
    colour, marker = published_look(number)
    dash, shown = (DENSE_DASH, "") if dense else ("-", marker)
    label = f"{series}, {how}"
    return Line2D([], [], color=colour, marker=shown, linestyle=dash, markersize=3, linewidth=0.9, label=label)


def line_key(look: Look, label: str, *, dash: Dash = "-") -> Line2D:
    """Return the legend's key of a line of ours."""
    return styled_key(LineLook(look.colour, look.marker, dash), label)


def styled_key(look: LineLook, label: str) -> Line2D:
    """Return the legend's key of a line of this look."""
    return Line2D([], [], label=label, **line_style(look))


def line_style(look: LineLook) -> dict[str, Any]:
    """Return how matplotlib draws a line of this look."""
    points = {"marker": look.marker, "fillstyle": look.fill, "markerfacecoloralt": mixed(look.colour, PAPER, FADED)}
    return {"color": look.colour, "linestyle": look.dash, "linewidth": 1, "markersize": 3.5, **points}
