"""Decoding speed by length, a pair of panels for each batch: tokens a second, and how many times dense decoding that is.

Dense decoding is the median over the arms of a length, its band from the lowest to the highest. A line is a method of decoding
after a method of prefill, whatever density it reached: the legend says which.
"""

from __future__ import annotations

import textwrap
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from harness.report.figures import style
from harness.report.lines import rows_by_line
from harness.report.rows import DecodeSpeed, Row
from harness.study.columns import AVERAGE

BATCHES = 4
"""Batches of a picture at most: the smallest, and the largest of the others."""
NAME = 34
"""Letters in a line of the legend."""
HOW = {"graph": "replayed as CUDA graphs", "events": "step by step, as Python launches them"}
"""How steps were timed, by the word of the records."""

Set = tuple[str, str, str]
"""Model, device and timing: what differs in one of them shares no picture."""


@dataclass(frozen=True)
class Point:
    """A row, and its speed at one batch."""

    row: Row
    batch: int
    speed: DecodeSpeed


def write(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write `decode_speed.png`, one for each model, device and way of timing, numbered from the second on; none where no
    method of decoding was timed."""
    sets: dict[Set, list[Point]] = defaultdict(list)
    for point in timed_points(rows):
        sets[point.row.model, point.row.device, point.speed.timing].append(point)
    with_methods = {key: points for key, points in sets.items() if any(point.row.decode.method for point in points)}
    return [
        style.save(draw(points, key), folder / f"decode_speed{f'_{number}' if number else ''}.png")
        for number, (key, points) in enumerate(sorted(with_methods.items()))
    ]


def timed_points(rows: Iterable[Row]) -> list[Point]:
    """Return the speed of every arm of each device at every batch."""
    arms = {(row.arm, row.device): row for row in rows if row.times is not None and row.task in ("", AVERAGE)}
    return [Point(row, batch, speed) for row in arms.values() if row.times for batch, speed in row.times.decode.items()]


def draw(points: Sequence[Point], key: Set) -> Figure:
    """Return the figure of the points of one model, device and way of timing."""
    model, device, timing = key
    batches = sorted({point.batch for point in points})
    batches = [batches[0], *batches[1:][-(BATCHES - 1) :]]
    lines = _lines([point for point in points if point.row.decode.method is not None])
    looks = style.looks_of(lines)
    figure = style.new_figure(2.6 * len(batches) + 4.4, 6.4)
    with matplotlib.rc_context(style.RC):
        panels = figure.subplots(2, len(batches), sharex=True, sharey="row", squeeze=False)
        for column, batch in enumerate(batches):
            above, below = panels[0][column], panels[1][column]
            _draw_dense(above, [point for point in points if point.batch == batch])
            below.axhline(1.0, color=style.INK, linewidth=1.2, linestyle=style.DENSE_DASH, zorder=2)
            for name, line in lines.items():
                members = [point for point in line if point.batch == batch]
                _draw_line(above, members, [point.speed.tokens_s for point in members], looks[name])
                _draw_line(below, members, [point.speed.speedup for point in members], looks[name])
            above.set_title(f"{batch} sequence{'s' if batch > 1 else ''}")
            below.set_xlabel("length (tokens)")
        _finish(panels[0][0], panels[1][0], sorted({point.row.length for point in points}))
        handles = [Line2D([], [], color=style.INK, linestyle=style.DENSE_DASH, label="dense attention")]
        handles += [_handle(name, line, looks[name]) for name, line in lines.items()]
        figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=9, labelspacing=0.7)
        style.set_title(figure, f"{model}: decoding speed", beside=style.NAME_LETTER * NAME)
        style.set_small_print(
            figure,
            "Above: tokens a second of all sequences of a batch together, the whole model; dense attention is the median over "
            "the arms of a length, its band from the lowest to the highest. Below: ratios to dense attention after the same "
            f"prefill, within rounds. Densities are measured at these steps. Timed {HOW.get(timing, timing)}, on {device}.",
        )
    return figure


def _lines(points: Sequence[Point]) -> dict[str, list[Point]]:
    """Return the points of every line by its name, in the order of their lengths."""
    rows = list({id(point.row): point.row for point in points}.values())
    of_row: dict[int, list[Point]] = defaultdict(list)
    for point in points:
        of_row[id(point.row)].append(point)
    named = rows_by_line(rows, along="length")
    return {
        _with_decoding(name, members): [
            point for row in sorted(members, key=lambda row: row.length) for point in of_row[id(row)]
        ]
        for name, members in named.items()
    }


def _with_decoding(name: str, rows: Sequence[Row]) -> str:
    """Return the name of a line with its method of decoding, which it has only where the lines of its method differ in it."""
    method = str(rows[0].decode.method)
    return name if method in name.partition(" (")[2] else f"{name}, {method}"


def _handle(name: str, line: Sequence[Point], look: style.Look) -> Line2D:
    """Return the entry of a line in the legend, with the densities that it reached."""
    densities = [point.row.decode_density for point in line if point.row.decode_density is not None]
    ends = dict.fromkeys(f"{end(densities):.3f}" for end in (min, max)) if densities else {}
    text = f"{name}: density {'–'.join(ends)}" if ends else name
    colour, marker = look
    return Line2D([], [], color=colour, marker=marker, markersize=5.5, linewidth=1.6, label=textwrap.fill(text, NAME))


def _draw_dense(axes: Axes, points: Sequence[Point]) -> None:
    """Draw dense decoding by length: the median over the arms, and the band that they leave open."""
    by_length: dict[int, list[float]] = defaultdict(list)
    for point in points:
        by_length[point.row.length].append(point.speed.dense_tokens_s)
    lengths = sorted(by_length)
    low, middle, high = ([of(by_length[length]) for length in lengths] for of in (min, median, max))
    axes.fill_between(lengths, low, high, color=style.INK, alpha=0.12, linewidth=0)
    axes.plot(lengths, middle, color=style.INK, linewidth=1.5, linestyle=style.DENSE_DASH, marker="_", zorder=2)


def _draw_line(axes: Axes, points: Sequence[Point], ys: Sequence[float], look: style.Look) -> None:
    """Draw the line of a method."""
    colour, marker = look
    lengths = [point.row.length for point in points]
    axes.plot(lengths, ys, color=colour, marker=marker, markersize=5.5, linewidth=1.6, zorder=3)


def _finish(above: Axes, below: Axes, lengths: Sequence[int]) -> None:
    """Set the axes that the panels of a row share."""
    above.set_yscale("log")
    above.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    above.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    above.yaxis.set_minor_formatter(NullFormatter())
    above.set_ylabel("tokens a second")
    below.set_ylabel("times faster than dense decoding")
    below.set_ylim(bottom=0)
    below.set_xscale("log", base=2)
    below.set_xticks(lengths, [style.tokens(length) for length in lengths])
    below.xaxis.set_minor_formatter(NullFormatter())
    below.xaxis.set_tick_params(which="minor", length=0)
