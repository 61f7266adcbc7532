"""Perplexity by length, one line a method at one sparsity; of one length, perplexity by density. Dense is the dashed line."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from harness.report.at_request import at_request
from harness.report.common_documents import on_common_documents
from harness.report.figures import style
from harness.report.figures.picture_rows import prompts_suffix, usual_sparsity
from harness.report.lines import rows_by_line
from harness.report.notes import count_range, off_density, request_note
from harness.report.rows import Perplexity, Row
from harness.study.columns import PERPLEXITY
from harness.study.schema import Status

WIDE = 3.0
"""Where the largest perplexity is so many times the smallest, the axis is logarithmic."""

Along = Literal["length", "density"]
"""What is on the x axis."""


@dataclass(frozen=True)
class Point:
    """A row with its place on the x axis and its perplexity."""

    x: float
    row: Row
    perplexity: Perplexity

    @property
    def low(self) -> float:
        """Return the lower end of its interval, or the perplexity itself where it has none."""
        return self.perplexity.perplexity if self.perplexity.perplexity_low is None else self.perplexity.perplexity_low

    @property
    def high(self) -> float:
        """Return the upper end of its interval, or the perplexity itself where it has none."""
        return self.perplexity.perplexity if self.perplexity.perplexity_high is None else self.perplexity.perplexity_high


@dataclass(frozen=True)
class Line:
    """A method's points along the x axis, and how they look."""

    name: str
    points: list[Point]
    colour: str
    marker: str
    dash: style.Dash
    dense: bool


def write(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write `perplexity.png`, one picture for each model, device and text, numbered from the second on, and one for each set of
    documents beside the main one."""
    sets: dict[tuple[str, str, str, str], list[Row]] = defaultdict(list)
    for row in on_common_documents([row for row in rows if row.task == PERPLEXITY and row.perplexity is not None]):
        sets[row.model, row.device, row.haystack, row.prompt_set].append(row)
    paths, texts = [], sorted({key[:3] for key in sets})
    for key, members in sorted(sets.items(), key=lambda item: item[0]):
        number = texts.index(key[:3])
        suffix = (f"_{number}" if number else "") + prompts_suffix(members)
        paths.append(style.save(draw(members), folder / f"perplexity{suffix}.png"))
    return paths


def draw(rows: Sequence[Row]) -> Figure:
    """Return the figure for rows of one model, device and text, those of a length on the same documents. Rows off the density
    asked for are left out by length, and by density small, hollow and off the line."""
    along: Along = "length" if len({row.length for row in rows}) > 1 else "density"
    compared, left_out = _at_one_sparsity(rows) if along == "length" else (list(rows), [])
    shown, sparsity = compared, _sparsity_of(compared) if along == "length" else None
    figure = style.new_figure(8.0, 4.6)
    with matplotlib.rc_context(style.RC):
        axes = figure.add_subplot()
        lines = _lines(shown, left_out, along)
        for line in lines:
            _draw_line(axes, line, along)
        _set_axes(axes, lines, along)
        _write_names(axes, lines, along)
        at = f" at density {1 - sparsity:.3g}" if sparsity is not None else ""
        by = "by length" if along == "length" else f"at {style.tokens(rows[0].length)} tokens"
        style.set_title(
            figure, f"{rows[0].model}: perplexity {by}{at}{f', {rows[0].prompt_set}' if rows[0].prompt_set else ''}"
        )
        style.set_small_print(figure, _note(shown, left_out))
    return figure


def _at_one_sparsity(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Return dense attention and the rows at the sparsity with most points, of those the nearest to 0.9, and the rows that are
    off it; all rows where none was asked for one."""
    compared = at_request(rows)
    sparsities = [row.sparsity for row in compared.averages if not row.is_baseline and row.sparsity is not None]
    if not sparsities:
        return compared.averages, compared.left_out
    sparsity = usual_sparsity(sparsities)
    shown = [row for row in compared.averages if row.is_baseline or row.sparsity == sparsity]
    return shown, [row for row in compared.left_out if row.sparsity == sparsity]


def _sparsity_of(rows: Sequence[Row]) -> float | None:
    """Return the sparsity that the rows of methods were asked for, if they were."""
    return next((row.sparsity for row in rows if not row.is_baseline and row.sparsity is not None), None)


def _lines(rows: Sequence[Row], left_out: Sequence[Row], along: Along) -> list[Line]:
    looks = style.looks_of(row.method for row in rows if not row.is_baseline)
    drawn: Counter[str] = Counter()
    lines = []
    grouped = rows_by_line(rows, along="length" if along == "length" else "sparsity", beside=left_out)
    for name, members in sorted(grouped.items()):
        method, dense = members[0].method, members[0].is_baseline
        colour, marker = (style.INK, "o") if dense else looks[method]
        dash = style.DENSE_DASH if dense else style.DASHES[drawn[method] % len(style.DASHES)]
        drawn[method] += 1
        points = [Point(_place(row, along), row, row.perplexity) for row in members if row.perplexity is not None]
        lines.append(Line(name, sorted(points, key=lambda point: point.x), colour, marker, dash, dense))
    return lines


def _place(row: Row, along: Along) -> float:
    """Return where a row stands on the x axis. Raises ValueError for one without a density."""
    place = row.length if along == "length" else row.density
    if place is None:
        raise ValueError(f"row of {row.method} at {row.length}: it has no density")
    return place


def _draw_line(axes: Axes, line: Line, along: Along) -> None:
    xs, ys = [point.x for point in line.points], [point.perplexity.perplexity for point in line.points]
    low, high = [point.low for point in line.points], [point.high for point in line.points]
    if line.dense and along == "density":
        axes.axhspan(low[0], high[0], color=line.colour, alpha=0.08, linewidth=0)
        axes.axhline(ys[0], color=line.colour, linewidth=1.2, linestyle=line.dash)
    elif line.dense:
        axes.fill_between(xs, low, high, color=line.colour, alpha=0.08, linewidth=0)
    else:
        bars = [[y - b for y, b in zip(ys, low, strict=True)], [b - y for y, b in zip(ys, high, strict=True)]]
        axes.errorbar(xs, ys, bars, fmt="none", ecolor=line.colour, elinewidth=1, capsize=2.5, alpha=0.5)
    joined = [point for point in line.points if not off_density(point.row)]
    axes.plot(
        [point.x for point in joined],
        [point.perplexity.perplexity for point in joined],
        color=line.colour,
        linewidth=1.8,
        linestyle=line.dash,
        zorder=3,
    )
    for x, y, point in zip(xs, ys, line.points, strict=True):
        if off_density(point.row):
            axes.plot(x, y, line.marker, color=line.colour, markerfacecolor="none", markersize=4, zorder=4)
            continue
        face = "white" if point.row.status == Status.GATED else line.colour
        axes.plot(x, y, line.marker, color=line.colour, markerfacecolor=face, markersize=6, zorder=4)


def _set_axes(axes: Axes, lines: Sequence[Line], along: Along) -> None:
    points = [point for line in lines for point in line.points]
    values = [point.perplexity.perplexity for point in points]
    axes.set_ylabel("perplexity")
    if max(values) > WIDE * min(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    if along == "density":
        axes.set_xlabel("density (share of causal blocks kept)")
        axes.set_xlim(0, 1.3)
        axes.set_xticks([t / 5 for t in range(6)])
        return
    lengths = sorted({point.row.length for point in points})
    axes.set_xscale("log", base=2)
    axes.set_xlim(lengths[0] / 2**0.2, lengths[-1] * max(2.0, lengths[-1] / lengths[0]) ** 0.28)
    axes.set_xticks(lengths, [style.tokens(length) for length in lengths])
    axes.minorticks_off()
    axes.set_xlabel("length (tokens)")


def _write_names(axes: Axes, lines: Sequence[Line], along: Along) -> None:
    """Write each line's name at its right end, moved apart on the axis as it is drawn, linear or logarithmic."""
    axes.figure.canvas.draw()  # the limits are settled by drawing
    to_axes = (axes.transData + axes.transAxes.inverted()).transform
    back = (axes.transAxes + axes.transData.inverted()).transform
    ends: dict[float, list[Line]] = defaultdict(list)
    for line in lines:
        ends[line.points[-1].x if along == "length" or line.dense else 0.0].append(line)
    for members in ends.values():  # lines that end elsewhere are not in each other's way
        points = [(float(line.points[-1].x), float(line.points[-1].perplexity.perplexity)) for line in members]
        heights = style.spread([float(to_axes(point)[1]) for point in points], 0.065, 0.0, 1.0)
        for line, point, height in zip(members, points, heights, strict=True):
            style.write_name(axes, line.name, point, float(back((0.5, height))[1]), line.colour, side="right")


def _note(rows: Sequence[Row], left_out: Sequence[Row]) -> str:
    counts = count_range((row.samples for row in rows), "–")
    gated = "; hollow: held back by a sanity gate" if any(row.status == Status.GATED for row in rows) else ""
    off = "Small, hollow, off the line: not at the density asked for. " if any(map(off_density, rows)) else ""
    text, device = rows[0].haystack, rows[0].device
    of_a_length = " of a length" if len({row.length for row in rows}) > 1 else ""
    request = request_note([row for row in rows if not off_density(row)], left_out)
    return (
        f"{off}{request}The same {counts} documents of {text} for all{of_a_length}, bars and band: 95 % interval over "
        f"documents{gated}.\nMeasured on {device}."
    )
