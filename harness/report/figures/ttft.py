"""Time to first token by length: dense attention, every method, and the limit, a prefill without attention.

At the left are the times themselves. At the right is how many times faster than dense attention they are, in the same rounds:
there no method of attention can pass the limit, and its band is how far the rounds of different arms differ in it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from harness.report.density_match import arm_but_numbers, judge_densities, prefill_request
from harness.report.figures import style
from harness.report.figures.few import MOST, best_few
from harness.report.figures.looks import BOUND_DASH, DENSE_DASH, INK, Dash, LineLook
from harness.report.figures.picture_rows import usual_sparsity
from harness.report.figures.signs import PALE, draw_bars, draw_row, pale_note
from harness.report.figures.trend import looks_of_lines
from harness.report.lines import rows_by_line
from harness.report.notes import left_out_note, off_density
from harness.report.row_texts import knobs_text
from harness.report.rows import Decode, Row, Times
from harness.report.stale import ROWS
from harness.study.columns import AVERAGE
from harness.study.matching import Match

LIMIT = "limit: no attention"
"""What the legend calls a prefill without attention."""
LIMIT_WIDTH = 2.2
"""Points that the line of the limit is wide."""
IN_SECONDS = 2000.0
"""Where the longest prefill takes so many milliseconds, the axis is in seconds."""
WIDTH = 10.0
"""Inches of the picture."""

Band = dict[int, tuple[float, float, float]]
"""By length: the lowest, the median and the highest value over the arms that were timed there."""


@dataclass(frozen=True)
class Point:
    """A row that was timed beside dense attention and a prefill without any, with its times."""

    row: Row
    times: Times
    dense_ms: float
    limit_ms: float

    @property
    def speedup(self) -> float:
        """Return how many times faster than with dense attention the prefill is, in the same rounds."""
        return self.dense_ms / self.times.ttft_ms


@dataclass(frozen=True)
class Picture:
    """What one picture shows: the points of every line by its name, dense attention and the limit by length, in milliseconds
    and as a speed-up, the rows that are left out, or are the nearer of two whole knobs, the device, and what the reasons of all
    rows say."""

    lines: dict[str, list[Point]]
    dense_ms: Band
    limit_ms: Band
    limit: Band
    left_out: list[Row]
    nearer: list[Row]
    device: str
    notices: list[str]


def write(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write `ttft.png`, at the density with most points, and `ttft_native.png` of rows that were asked for none, one of each
    for a model and device, numbered from the second on. Nothing is written for a single length, nor where no method is asked
    for."""
    sets: dict[tuple[str, str], list[Point]] = defaultdict(list)
    for point in timed_points(rows):
        sets[point.row.model, point.row.device].append(point)
    paths = []
    for number, (_, points) in enumerate(sorted(sets.items(), key=lambda item: item[0])):
        suffix = f"_{number}" if number else ""
        asked = [point.row.sparsity for point in points if not point.row.is_baseline]
        sparsity = usual_sparsity(asked)
        for name, asked_sparsity in (("ttft", sparsity), ("ttft_native", None)):
            own = [point for point in points if point.row.is_baseline or point.row.sparsity == asked_sparsity]
            if asked_sparsity not in asked:
                continue
            picture = picture_of(own)
            if len(picture.dense_ms) > 1:
                figure = draw(picture, _title(own[0].row, asked_sparsity))
                paths.append(style.save(figure, folder / f"{name}{suffix}.png", mark=ROWS))
    return paths


def timed_points(rows: Iterable[Row]) -> list[Point]:
    """Return every arm of each device once that was timed beside a prefill without attention; of arms that differ in nothing
    but how they decode, the first one."""
    points: dict[tuple[str, str], Point] = {}
    for row in _prefills(rows):
        times = row.times
        if times is None or row.task not in ("", AVERAGE):
            continue
        if times.dense_ttft_ms and times.no_attention_ttft_ms and times.ttft_ms:
            points.setdefault((row.arm, row.device), Point(row, times, times.dense_ttft_ms, times.no_attention_ttft_ms))
    return list(points.values())


def _prefills(rows: Iterable[Row]) -> list[Row]:
    """Return rows without a method of decoding, which is no part of a prefill, nor of the density that was asked for there:
    those that decode densely, and of the others each prefill that is not among them, once. Dense attention's is the
    baseline's."""
    plain: list[Row] = []
    others: dict[tuple[object, ...], Row] = {}
    for row in rows:
        if row.decode.method is None:
            plain.append(row)
        elif row.block_size is not None:
            others.setdefault(_prefill_of(row), replace(row, decode=Decode(), decode_density=None))
    known = set(map(_prefill_of, plain))
    return [*plain, *judge_densities([row for prefill, row in others.items() if prefill not in known])]


def _prefill_of(row: Row) -> tuple[object, ...]:
    """Return what is equal for rows that differ in nothing but how they decode."""
    return arm_but_numbers(replace(row, decode=Decode())), knobs_text(row.knobs), row.kernels


def picture_of(points: Sequence[Point]) -> Picture:
    """Return what a picture of points of one model, device and request shows. A point off the density asked for is left out; of
    the two whole knobs beside it the nearer one is shown: times can't be interpolated."""
    by_arm: dict[tuple[object, ...], list[Point]] = defaultdict(list)
    for point in points:
        if not off_density(point.row):
            by_arm[arm_but_numbers(point.row) if point.row.match else (point.row.arm,)].append(point)
    shown = [min(members, key=_distance) for members in by_arm.values()]
    left_out = [point.row for point in points if off_density(point.row)]
    named = rows_by_line([point.row for point in shown], along="length", beside=left_out)
    of_row = {id(point.row): point for point in shown}
    lines = {
        name: sorted((of_row[id(row)] for row in members), key=lambda point: point.row.length)
        for name, members in named.items()
        if not members[0].is_baseline
    }
    return Picture(
        lines,
        _band(points, lambda point: point.dense_ms),
        _band(points, lambda point: point.limit_ms),
        _band(points, lambda point: point.dense_ms / point.limit_ms),
        left_out,
        [point.row for point in shown if point.row.match == Match.NEAREST],
        points[0].row.device,
        _common_notices(points),
    )


def _common_notices(points: Sequence[Point]) -> list[str]:
    """Return what the reasons of all rows say alike, such as that the weights are random."""
    parts = [point.row.reason.split("; ") for point in points]
    return [part for part in parts[0] if part and all(part in others for others in parts)]


def _distance(point: Point) -> float:
    """Return how far the density of a row is from the one that it was asked for."""
    request = prefill_request(point.row)
    return 0.0 if request is None or point.row.density is None else abs(point.row.density - request)


def _band(points: Sequence[Point], value: Callable[[Point], float]) -> Band:
    """Return the band of a value over points, by length."""
    by_length: dict[int, list[float]] = defaultdict(list)
    for point in points:
        by_length[point.row.length].append(value(point))
    return {length: (min(values), median(values), max(values)) for length, values in sorted(by_length.items())}


def _title(row: Row, sparsity: float | None) -> str:
    at = "at each method's own settings" if sparsity is None else f"at density {1 - sparsity:.3g}"
    return f"{row.model}: time to first token {at}"


def draw(picture: Picture, title: str) -> Figure:
    """Return the figure of a picture. Of too many lines the fastest ones are in colour."""
    coloured = best_few(picture.lines, lambda name: _fastest_first(picture.lines[name]), MOST - 2)
    coloured.sort(key=lambda name: _fastest_first(picture.lines[name]))
    with matplotlib.rc_context(style.RC):
        handles = [Line2D([], [], color=INK, linestyle=DENSE_DASH, label="dense attention")]
        handles.append(Line2D([], [], color=INK, linestyle=BOUND_DASH, linewidth=LIMIT_WIDTH, label=LIMIT))
        looks = looks_of_lines({name: [point.row for point in picture.lines[name]] for name in coloured})
        handles += [_handle(name, looks[name]) for name in coloured]
        legend = style.legend_height([str(handle.get_label()) for handle in handles], WIDTH)
        figure = style.new_figure(WIDTH, 4.6 + legend)
        left, right = figure.subplots(1, 2)
        unit, name = (1e3, "s") if max(high for _, _, high in picture.dense_ms.values()) > IN_SECONDS else (1.0, "ms")
        for dash, band in ((DENSE_DASH, picture.dense_ms), (BOUND_DASH, picture.limit_ms)):
            _draw_band(left, band, dash, unit)
        right.axhline(1.0, color=INK, linewidth=1.2, linestyle=DENSE_DASH, zorder=2)
        _draw_band(right, picture.limit, BOUND_DASH)
        for text in picture.lines:
            points = picture.lines[text]
            look = looks[text] if text in coloured else None
            _draw_line(left, points, [p.times.ttft_ms / unit for p in points], look, text)
            _draw_line(right, points, [p.speedup for p in points], look, text)
            if look is not None:
                _draw_bars(left, points, look, unit)
        left.set_yscale("log")
        style.log_axis(left.yaxis)
        left.set_ylabel(f"time to first token ({name}), {style.LOG}")
        right.set_ylabel("times as fast as with dense attention")
        right.set_ylim(bottom=0)
        for axes in (left, right):
            style.length_axis(axes, list(picture.dense_ms))
        style.set_title(figure, title)
        pale = pale_note(set(picture.lines) - set(coloured), "speed at the longest length")
        style.set_small_print(figure, pale + _note(picture))
        style.add_legend(figure, handles)
    return figure


def _fastest_first(points: Sequence[Point]) -> tuple[int, float]:
    """Return what orders lines: the fastest at the longest length first."""
    return -points[-1].row.length, -points[-1].speedup


def _handle(name: str, look: LineLook) -> Line2D:
    return Line2D([], [], color=look.colour, marker=look.marker, markersize=5.5, linewidth=1.6, linestyle=look.dash, label=name)


def _draw_band(axes: Axes, band: Band, dash: Dash, unit: float = 1.0) -> None:
    """Draw the median of a band as a line, and the band itself, in a unit of the values."""
    low, middle, high = ([values[place] / unit for values in band.values()] for place in range(3))
    axes.fill_between(list(band), low, high, color=INK, alpha=0.12, linewidth=0)
    width = LIMIT_WIDTH if dash == BOUND_DASH else 1.5
    axes.plot(list(band), middle, color=INK, linewidth=width, linestyle=dash, zorder=2)


def _draw_line(axes: Axes, points: Sequence[Point], ys: Sequence[float], look: LineLook | None, name: str) -> None:
    """Draw a method's line, labelled with its name, a pale one without a look."""
    xs = [point.row.length for point in points]
    if look is None:
        axes.plot(xs, ys, color=PALE, linewidth=1.1, label=name, zorder=1.5)
        return
    axes.plot(xs, ys, color=look.colour, linewidth=1.6, linestyle=look.dash, label=name, zorder=3)
    for x, y, point in zip(xs, ys, points, strict=True):
        draw_row(axes, (x, y), look, point.row)


def _draw_bars(axes: Axes, points: Sequence[Point], look: LineLook, unit: float) -> None:
    """Draw the bars of the times of a line, of rows that have their percentiles."""
    for point in points:
        low, high = point.times.ttft_low, point.times.ttft_high
        ends = None if low is None or high is None else (low / unit, high / unit)
        draw_bars(axes, [(point.row.length, point.times.ttft_ms / unit)], [ends], look.colour)


def _note(picture: Picture) -> str:
    """Return the small print."""
    points = [point for members in picture.lines.values() for point in members]
    rows = [point.row for point in points]
    densities = [row.density for row in rows if row.density is not None]
    ends = dict.fromkeys(f"{end(densities):.3f}" for end in (min, max)) if densities else {}
    measured = f"Measured densities: {'–'.join(ends)}. " if ends else ""
    names = sorted({row.method for row in picture.nearer})
    nearer = f"The nearer of two whole knobs: {', '.join(names)}. " if names else ""
    left_out = left_out_note(picture.left_out, rows)
    with_bars = any(point.times.ttft_low is not None for point in points)
    bars = ", bars from the 10th to the 90th percentile" if with_bars else ", without bars: their spread was not recorded"
    notices = "".join(f"{notice.capitalize()}. " for notice in picture.notices)
    return (
        f"{notices}{measured}{nearer}{left_out}"
        f"Limit: the same prefill without attention, in turns with dense attention and the method; "
        f"both are the median over the arms of a length, bands from the lowest to the highest.\n"
        f"Left: each method in rounds of its own{bars}. Right: ratios within rounds, without bars. "
        f"One prompt at a time on {picture.device}."
    )
