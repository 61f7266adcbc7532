"""Decoding speed by length, a pair of panels for each batch: tokens a second, and how many times dense decoding that is.

Dense decoding is the median over the arms of a length, its band from the lowest to the highest. A line is a method of decoding
after a method of prefill, whatever density it reached: the legend says which.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from harness.report.figures import style
from harness.report.figures.few import MOST, best_few
from harness.report.figures.looks import DENSE_DASH, INK, LineLook, is_bound, line_looks
from harness.report.figures.signs import PALE, draw_bars, draw_point, pale_note
from harness.report.lines import rows_by_line
from harness.report.rows import DecodeSpeed, Row
from harness.report.stale import ROWS
from harness.study.columns import AVERAGE
from harness.study.schema import Status

BATCHES = 4
"""Batches of a picture at most: the smallest, and the largest of the others."""
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
        style.save(draw(points, key), folder / f"decode_speed{f'_{number}' if number else ''}.png", mark=ROWS)
        for number, (key, points) in enumerate(sorted(with_methods.items()))
    ]


def timed_points(rows: Iterable[Row]) -> list[Point]:
    """Return the speed of every arm of each device at every batch."""
    arms = {(row.arm, row.device): row for row in rows if row.times is not None and row.task in ("", AVERAGE)}
    return [Point(row, batch, speed) for row in arms.values() if row.times for batch, speed in row.times.decode.items()]


def draw(points: Sequence[Point], key: Set) -> Figure:
    """Return the figure of the points of one model, device and way of timing. Of too many lines the fastest ones are in
    colour."""
    model, device, timing = key
    batches = sorted({point.batch for point in points})
    batches = [batches[0], *batches[1:][-(BATCHES - 1) :]]
    lines = _lines([point for point in points if point.row.decode.method is not None])
    coloured = best_few(lines, lambda name: -max(point.speed.speedup for point in lines[name]), MOST - 1)
    methods = {name: str(lines[name][0].row.decode.method) for name in sorted(coloured)}
    looks = line_looks(methods, bounds=[name for name, method in methods.items() if is_bound(method)])
    with matplotlib.rc_context(style.RC):
        handles = [Line2D([], [], color=INK, linestyle=DENSE_DASH, label="dense attention")]
        handles += [_handle(name, lines[name], looks[name]) for name in coloured]
        width = min(style.WIDEST_PAGE, 2.6 * len(batches) + 1.8)
        legend = style.legend_height([str(handle.get_label()) for handle in handles], width)
        figure = style.new_figure(width, 6.6 + legend)
        above, below = figure.subplots(2, len(batches), sharex=True, sharey="row", squeeze=False)
        lengths = sorted({point.row.length for point in points})
        for upper, lower, batch in zip(above, below, batches, strict=True):
            _draw_dense(upper, [point for point in points if point.batch == batch])
            lower.axhline(1.0, color=INK, linewidth=1.2, linestyle=DENSE_DASH, zorder=2)
            for name, line in lines.items():
                members = [point for point in line if point.batch == batch]
                look = looks[name] if name in coloured else None
                _draw_line(upper, members, [point.speed.tokens_s for point in members], look, bars=True)
                _draw_line(lower, members, [point.speed.speedup for point in members], look)
            upper.set_title(f"{batch} sequence{'s' if batch > 1 else ''}", loc="left", fontweight="bold")
            lower.set_xlabel(f"length (tokens), {style.LOG}")
        style.length_axis(below[0], lengths)
        above[0].set_yscale("log")
        style.log_axis(above[0].yaxis)
        above[0].set_ylabel(f"tokens a second, {style.LOG}")
        below[0].set_ylabel("times as fast as dense")
        below[0].set_ylim(bottom=0)
        style.set_title(figure, f"{model}: decoding speed")
        style.set_small_print(
            figure,
            pale_note(set(lines) - set(coloured), "speed-up")
            + "Above: tokens a second of all sequences of a batch together, the whole model, bars from the 10th to the 90th "
            "percentile, within their points where none is seen; dense attention is the median over the arms of a length, its "
            "band from the lowest to the highest. Below: ratios to dense attention after the same prefill, within rounds, "
            f"without bars. Densities are measured at these steps. Timed {HOW.get(timing, timing)}, on {device}.",
        )
        style.add_legend(figure, handles)
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


def _handle(name: str, line: Sequence[Point], look: LineLook) -> Line2D:
    """Return the entry of a line in the legend, with the densities that it reached."""
    densities = [point.row.decode_density for point in line if point.row.decode_density is not None]
    ends = dict.fromkeys(f"{end(densities):.3f}" for end in (min, max)) if densities else {}
    text = f"{name}: density {'–'.join(ends)}" if ends else name
    return Line2D([], [], color=look.colour, marker=look.marker, markersize=5.5, linewidth=1.6, linestyle=look.dash, label=text)


def _draw_dense(axes: Axes, points: Sequence[Point]) -> None:
    """Draw dense decoding by length: the median over the arms, and the band that they leave open."""
    by_length: dict[int, list[float]] = defaultdict(list)
    for point in points:
        by_length[point.row.length].append(point.speed.dense_tokens_s)
    lengths = sorted(by_length)
    low, middle, high = ([of(by_length[length]) for length in lengths] for of in (min, median, max))
    axes.fill_between(lengths, low, high, color=INK, alpha=0.12, linewidth=0)
    axes.plot(lengths, middle, color=INK, linewidth=1.5, linestyle=DENSE_DASH, marker="_", zorder=2)


def _draw_line(axes: Axes, points: Sequence[Point], ys: Sequence[float], look: LineLook | None, *, bars: bool = False) -> None:
    """Draw the line of a method, a pale one without a look; bars: with the spread of its rounds."""
    lengths = [point.row.length for point in points]
    if look is None:
        axes.plot(lengths, ys, color=PALE, linewidth=1.1, zorder=1.5)
        return
    axes.plot(lengths, ys, color=look.colour, linewidth=1.6, linestyle=look.dash, zorder=3)
    for point, y in zip(points, ys, strict=True):
        draw_point(axes, (point.row.length, y), look, crossed=point.row.status == Status.GATED)
        if bars:
            draw_bars(axes, [(point.row.length, y)], [(point.speed.low, point.speed.high)], look.colour)
