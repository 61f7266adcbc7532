"""One look for all pictures: fonts, a palette that colour-blind readers can tell apart, markers, labels, saving."""

from __future__ import annotations

import io
import re
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
from matplotlib.patheffects import withStroke
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter

from harness.core.files import write_atomically
from harness.core.printable import cut, printable

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5195", "#8C6D31")
"""Okabe & Ito (2008) in the order that keeps neighbours apart, and two more; black is dense."""
MARKERS = "osD^vPX*"
MANY = 8
"""Methods that lines and names beside them can tell apart."""
Look = tuple[str, str]
"""Colour and marker of a method."""
Dash = str | tuple[int, tuple[float, ...]]
"""A line's style, as matplotlib takes it."""
DASHES: tuple[Dash, ...] = ("-", (0, (6, 2)), (0, (2, 1.5)), (0, (6, 2, 1, 2)))
"""Line styles of the lines of one method."""
DENSE_DASH: Dash = (0, (5, 3))
"""The line style of dense attention."""
NARROWEST = 6.4
"""Inches that title and small print need in lines that one likes to read."""
TITLE_LETTER, NAME_LETTER, SMALL_LETTER = 0.105, 0.08, 0.063
"""Inches of an average letter: bold of 12 points, of 9, of 8."""
WIDEST = 100.0
"""Inches of a picture at most: names of any length must not make one that no program opens."""
LONGEST_LINE = 300
"""Letters of a line of text at most."""
LONGEST_TITLE = 400
"""Letters of a title at most."""
INK, GREY = "#222222", "#6b6b6b"
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


def save(figure: Figure, path: Path) -> Path:
    """Write the figure in one step: readers see the old picture or the new one. Raises UserError where it can't be written."""
    picture = io.BytesIO()
    show_as_written(figure)
    with matplotlib.rc_context(RC), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a box stands for a letter that the font lacks
        figure.savefig(picture, format="png")
    return write_atomically(path, lambda file: file.write(picture.getvalue()))


def remove_others(folder: Path, names: re.Pattern[str], paths: Sequence[Path]) -> None:
    """Remove the pictures with such names that an earlier call left in a folder, all but `paths`: of rows that are gone."""
    for old in folder.glob("*.png"):
        if names.fullmatch(old.name) and old not in paths:
            old.unlink()


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
    figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=8, color=GREY)


def looks_of(names: Iterable[str]) -> dict[str, Look]:
    """Return colour and marker of every name, the same in all pictures of the same names."""
    looks = {}
    for i, name in enumerate(sorted(set(names))):
        turn = i // len(PALETTE)  # a colour that comes again has another marker
        looks[name] = PALETTE[i % len(PALETTE)], MARKERS[(i + 3 * turn) % len(MARKERS)]
    return looks


def tokens(length: int) -> str:
    """Return 4096 as "4k"; a length that is no multiple of 1024 as it is."""
    return f"{length // 1024}k" if length % 1024 == 0 else f"{length:,}"


def percent_axis(axes: Axes) -> None:
    """Show accuracy in per cent on the y axis, with room for bars at 0 and 100."""
    axes.set_ylim(-4, 104)
    axes.set_yticks(range(0, 101, 20))
    axes.set_ylabel("accuracy (%)")


def spread(positions: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Return positions as near to the given ones as can be with at least `gap` between neighbours, within [low, high]."""
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    groups: list[tuple[list[int], float]] = []  # members, centre
    for i in order:
        members, centre = [i], positions[i]
        while groups:
            before, at = groups[-1]
            if at + gap * len(before) / 2 <= centre - gap * len(members) / 2:
                break
            groups.pop()
            members = before + members
            centre = sum(positions[m] for m in members) / len(members)
        half = gap * (len(members) - 1) / 2
        centre = min(max(centre, low + half), high - half)
        groups.append((members, centre))
    placed = [0.0] * len(positions)
    for members, centre in groups:
        for rank, i in enumerate(members):
            placed[i] = centre + gap * (rank - (len(members) - 1) / 2)
    return placed


def write_name(axes: Axes, text: str, point: tuple[float, float], height: float, colour: str, *, side: str) -> None:
    """Write a line's name beside its end `point`, at `height` on the y axis, on its left or right side, or below it. A
    white halo keeps it readable on another line."""
    away, align = {"left": (-11, "right"), "right": (11, "left"), "below": (0, "center")}[side]
    axes.annotate(
        text,
        (point[0], height),
        xytext=(away, 0),
        textcoords="offset points",
        ha=align,
        va="center",
        fontsize=9.5,
        color=colour,
        fontweight="bold",
        zorder=6,
        path_effects=[withStroke(linewidth=3, foreground="white")],
    )
