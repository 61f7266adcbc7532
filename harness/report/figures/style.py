"""What all pictures share: fonts, sizes, titles, small print, axes, saving. How methods look is in `looks`."""

from __future__ import annotations

import io
import math
import textwrap
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from harness.core.files import write_atomically
from harness.core.printable import cut, printable
from harness.report.figures.looks import GREY, INK
from harness.report.stale import KEYWORD

MANY = 8
"""Methods at most whose studies have no heatmap of accuracy: lines tell them apart."""
WIDEST_PAGE = 10.5
"""Inches of a picture that is read in a column of text: wider ones have letters too small for it, so their panels go on in a
row below."""
NARROWEST = 6.4
"""Inches that title and small print need in lines that one likes to read."""
SMALL_PRINT = 8.5
"""Points of the letters of the small print."""
LOG = "log scale"
"""What the label of a logarithmic axis says after its unit."""
KEY = 0.75
"""Inches of what stands beside a name in a legend."""
LEGEND_LINE = 3.2
"""Letters that a line in a legend is long: as many as its dash needs to be seen."""
TITLE_LETTER, NAME_LETTER, SMALL_LETTER = 0.105, 0.08, 0.067
"""Inches of an average letter: bold of 12 points, of 9, of 8.5."""
WIDEST = 100.0
"""Inches of a picture at most: names of any length must not make one that no program opens."""
LONGEST_LINE = 300
"""Letters of a line of text at most."""
LONGEST_TITLE = 400
"""Letters of a title at most."""
RC = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.labelsize": 10,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "text.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "savefig.dpi": 160,
    "text.usetex": False,
}
"""Settings of matplotlib for a picture of lines."""
HEATMAP_RC = RC | {"axes.grid": False}
"""Settings of matplotlib for a picture of coloured cells."""


def new_figure(width: float, height: float) -> Figure:
    """Return a figure of width × height inches that needs no display; as wide as the text around a picture needs at least."""
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(min(max(width, NARROWEST), WIDEST), min(height, WIDEST)), layout="constrained")
        FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path, *, mark: str = "") -> Path:
    """Write the figure in one step: readers see the old picture or the new one. mark: written into the file, so that whoever
    drew it knows it again (`harness.report.stale`). Raises UserError where it can't be written."""
    picture = io.BytesIO()
    show_as_written(figure)
    metadata = {KEYWORD: mark} if mark else None
    with matplotlib.rc_context(RC), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a box stands for a letter that the font lacks
        figure.savefig(picture, format="png", metadata=metadata)
    return write_atomically(path, lambda file: file.write(picture.getvalue()))


def show_as_written(figure: Figure) -> None:
    """Have all texts of a figure shown as they are: names are data. No dollar sign begins a formula, a control character is
    shown as its escape, and a line ends before it makes the picture wide. The one exit of text into pictures: nothing that
    draws has to think of it."""
    for text in _texts(figure):
        text.set_parse_math(False)
        if (shown := _as_shown(text.get_text())) != text.get_text():
            text.set_text(shown)


def _as_shown(text: str) -> str:
    """Return a text with nothing in it that is acted on, and no line that is too long."""
    return "\n".join(cut(line, LONGEST_LINE) for line in printable(text, keep="\n").split("\n"))


def _texts(artist: Artist) -> Iterator[Text]:
    """Yield the texts below an artist, without the numbers that an axis writes by itself: some of those are formulas."""
    if isinstance(artist, Axis):
        yield artist.label
        formatter = artist.get_major_formatter()
        if isinstance(formatter, FuncFormatter):  # as names along an axis are held, too
            formatter.func = partial(_label, formatter.func)
            for tick in artist.get_major_ticks():
                yield from (tick.label1, tick.label2)
        return
    if isinstance(artist, Text):
        yield artist
    for child in artist.get_children():
        yield from _texts(child)


def _label(written: Callable[..., str], value: float, place: int | None = None) -> str:
    """Return what an axis writes at a place, as it is shown."""
    return _as_shown(written(value, place))


def set_title(figure: Figure, text: str, *, beside: float = 0.0) -> None:
    """Write the picture's title at its left, in as many lines as its width needs; `beside` inches at the right stay free."""
    columns = int((figure.get_figwidth() - beside) / TITLE_LETTER)
    lines = textwrap.fill(cut(printable(text), LONGEST_TITLE), max(20, columns))
    figure.suptitle(lines, x=0.01, ha="left", fontsize=12, fontweight="bold")


def set_small_print(figure: Figure, text: str) -> None:
    """Write small print at the picture's lower left, its lines folded to the width."""
    columns = int(figure.get_figwidth() / SMALL_LETTER)
    lines = [part for line in text.split("\n") for part in textwrap.wrap(cut(printable(line), 4 * LONGEST_LINE), columns)]
    figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=SMALL_PRINT, color=GREY)


def tokens(length: int) -> str:
    """Return 4096 as "4k"; a length that is no multiple of 1024 as it is."""
    return f"{length // 1024}k" if length % 1024 == 0 else f"{length:,}"


def percent_axis(axes: Axes, percents: Iterable[float] = ()) -> None:
    """Show accuracy in per cent on the y axis, from where the values are; all of it, with room for bars at 0 and 100, where
    there are none. The label says where an axis begins that doesn't at 0."""
    values = [*percents] or [0.0, 100.0]
    low, high = 10 * math.floor((min(values) - 2) / 10), 10 * math.ceil((max(values) + 2) / 10)
    low, high = max(0, min(low, high - 20)), min(100, high)
    axes.set_ylim(low - 4 * (low == 0) * high / 100, high + 4 * (high - low) / 100)
    step = 10 if high - low <= 50 else 20
    axes.set_yticks(range(step * math.ceil(low / step), high + 1, step))
    axes.set_ylabel(f"accuracy (%), from {low}" if low else "accuracy (%)")


def log_axis(axis: Axis) -> None:
    """Write the numbers of a logarithmic axis, whose limits are settled, without exponents: 1, 2, 5, and those between where it
    is short; nothing at its minor ticks."""
    limits = axis.axes.viewLim
    low, high = sorted(limits.intervalx if axis is axis.axes.xaxis else limits.intervaly)
    few = MaxNLocator(5, steps=[1, 2, 5, 10]) if high < 3 * low else LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 7))
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)) if high > 8 * low else few)
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def length_axis(axes: Axes, lengths: Sequence[int], label: str = "length (tokens)") -> None:
    """Show lengths on the x axis, each doubling as far as the next, and say so. A single one stands in the middle."""
    axes.set_xscale("log", base=2)
    if len(lengths) == 1:
        axes.set_xlim(lengths[0] / 1.5, lengths[0] * 1.5)
    axes.set_xticks(lengths, [tokens(length) for length in lengths])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_tick_params(which="minor", length=0)
    axes.set_xlabel(f"{label}, {LOG}")


def add_legend(figure: Figure, handles: Sequence[Artist]) -> None:
    """Write the legend of a picture above its small print, which is written before it, in as many columns as its names leave
    room for. The handles have their names as labels."""
    labels = [str(handle.get_label()) for handle in handles]
    width, whole = figure.get_size_inches()
    height = legend_height(labels, width)
    small_print = figure.get_supxlabel()
    below = 0.1 + 1.25 * SMALL_PRINT / 72 * (1 + small_print.count("\n")) if small_print else 0.05
    figure.get_layout_engine().set(rect=(0, height / whole, 1, 1 - height / whole))  # type: ignore[union-attr, call-arg]
    figure.legend(
        handles,
        [f" {label}" if label.startswith("_") else label for label in _folded(labels, width)],  # matplotlib hides those
        loc="lower left",
        bbox_to_anchor=(0.01, below / whole),
        borderaxespad=0,
        ncols=legend_columns(labels, width),
        frameon=False,
        fontsize=9,
        handlelength=LEGEND_LINE,
        columnspacing=1.2,
    )


def _folded(labels: Sequence[str], inches: float) -> list[str]:
    """Return names in lines that a legend so many inches wide has room for."""
    return [textwrap.fill(label, int((inches - KEY) / NAME_LETTER)) or label for label in labels]


def legend_columns(labels: Sequence[str], inches: float) -> int:
    """Return how many columns a legend has that is so many inches wide."""
    widest = KEY + NAME_LETTER * max((len(line) for label in _folded(labels, inches) for line in label.split("\n")), default=0)
    return max(1, min(len(labels), int(inches / widest)))


def legend_height(labels: Sequence[str], inches: float) -> float:
    """Return the inches that a legend takes from top to bottom."""
    columns = legend_columns(labels, inches)
    lines = [1 + label.count("\n") for label in _folded(labels, inches)]
    return 0.1 + 0.2 * (math.ceil(len(labels) / columns) if columns > 1 else sum(lines)) if labels else 0.0
