"""Perplexity by length, one line a method at one sparsity; of one length, perplexity by density. Dense is the dashed line."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.report.at_request import at_request
from harness.report.common_documents import on_common_documents
from harness.report.figures import labels, style, trend
from harness.report.figures.few import best_few
from harness.report.figures.looks import LineLook
from harness.report.figures.picture_rows import prompts_suffix, usual_sparsity
from harness.report.figures.signs import PALE, draw_bars, draw_row, pale_note, signs_note
from harness.report.lines import rows_by_line
from harness.report.notes import count_range, off_density, request_note
from harness.report.rows import Perplexity, Row
from harness.report.stale import ROWS
from harness.study.columns import PERPLEXITY

WIDTH = 8.0
"""Inches of the picture."""
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
        paths.append(style.save(draw(members), folder / f"perplexity{suffix}.png", mark=ROWS))
    return paths


def draw(rows: Sequence[Row]) -> Figure:
    """Return the figure for rows of one model, device and text, those of a length on the same documents. Rows off the density
    asked for are left out by length, and by density hollow and on no line. Of too many lines the best ones are in colour."""
    along: Along = "length" if len({row.length for row in rows}) > 1 else "density"
    compared, left_out = _at_one_sparsity(rows) if along == "length" else (list(rows), [])
    shown, sparsity = compared, _sparsity_of(compared) if along == "length" else None
    names = _lines(shown, left_out, along)
    coloured = best_few(names, lambda name: (not _is_dense(names[name]), fmean(_values(names[name]))))
    looks = trend.looks_of_lines({name: [point.row for point in names[name]] for name in coloured})
    height = max(4.4, labels.names_height(coloured) + 1.6)
    figure = style.new_figure(WIDTH, height)
    with matplotlib.rc_context(style.RC):
        axes = figure.add_subplot()
        pale = [name for name in names if name not in coloured]
        for name in pale:
            _draw_pale(axes, names[name])
        for name in coloured:
            _draw_line(axes, names[name], looks[name])
        _set_axes(axes, [point for points in names.values() for point in points], along)
        ends = [
            labels.End(name, names[name][-1].x, _values(names[name])[-1], looks[name].colour, looks[name].marker)
            for name in coloured
        ]
        xs = [point.x for points in names.values() for point in points]
        labels.write_names(axes, ends, (WIDTH - 0.8, height - 1.6), (min(xs), max(xs)))
        at = f" at density {1 - sparsity:.3g}" if sparsity is not None else ""
        by = "by length" if along == "length" else f"at {style.tokens(rows[0].length)} tokens"
        style.set_title(
            figure, f"{rows[0].model}: perplexity {by}{at}{f', {rows[0].prompt_set}' if rows[0].prompt_set else ''}"
        )
        drawn = [point.row for name in coloured for point in names[name]]
        signs = signs_note(drawn, dashed=any(row.is_baseline for row in drawn))
        style.set_small_print(figure, pale_note(pale, "mean perplexity") + signs + _note(shown, left_out))
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


def _lines(rows: Sequence[Row], left_out: Sequence[Row], along: Along) -> dict[str, list[Point]]:
    """Return the points of every line by its name, from left to right."""
    grouped = rows_by_line(rows, along="length" if along == "length" else "sparsity", beside=left_out)
    lines = {}
    for name, members in sorted(grouped.items()):
        points = [Point(_place(row, along), row, row.perplexity) for row in members if row.perplexity is not None]
        lines[name] = sorted(points, key=lambda point: point.x)
    if along == "density":  # dense attention is level, as far as the others go
        xs = [point.x for points in lines.values() if not _is_dense(points) for point in points] or [1.0]
        for name, points in lines.items():
            if _is_dense(points):
                lines[name] = [replace(points[0], x=x) for x in (min(xs), max(xs))]
    return lines


def _is_dense(points: Sequence[Point]) -> bool:
    return points[0].row.is_baseline


def _values(points: Sequence[Point]) -> list[float]:
    """Return the perplexities of points."""
    return [point.perplexity.perplexity for point in points]


def _place(row: Row, along: Along) -> float:
    """Return where a row stands on the x axis. Raises ValueError for one without a density."""
    place = row.length if along == "length" else row.density
    if place is None:
        raise ValueError(f"row of {row.method} at {row.length}: it has no density")
    return place


def _joined(points: Sequence[Point]) -> tuple[list[float], list[float]]:
    """Return the places of the points that a line passes through."""
    joined = [point for point in points if not off_density(point.row)]
    return [point.x for point in joined], _values(joined)


def _draw_pale(axes: Axes, points: Sequence[Point]) -> None:
    """Draw a line of too many, without bars and signs."""
    axes.plot(*_joined(points), color=PALE, linewidth=1.1, zorder=1.5)
    axes.plot([point.x for point in points], _values(points), ".", color=PALE, markersize=4, zorder=1.5)


def _draw_line(axes: Axes, points: Sequence[Point], look: LineLook) -> None:
    """Draw a line with its points and their intervals; dense attention's is a band."""
    xs, ys = [point.x for point in points], _values(points)
    low, high = [point.low for point in points], [point.high for point in points]
    if _is_dense(points):
        axes.fill_between(xs, low, high, color=look.colour, alpha=0.08, linewidth=0)
    else:
        draw_bars(axes, [*zip(xs, ys, strict=True)], [*zip(low, high, strict=True)], look.colour)
    axes.plot(*_joined(points), color=look.colour, linewidth=1.8, linestyle=look.dash, zorder=3)
    for x, y, point in zip(xs, ys, points, strict=True):
        draw_row(axes, (x, y), look, point.row)


def _set_axes(axes: Axes, points: Sequence[Point], along: Along) -> None:
    """Set scales, ticks and labels."""
    values = _values(points)
    if max(values) > WIDE * min(values):
        axes.set_yscale("log")
        axes.set_ylabel(f"perplexity, {style.LOG}")
        style.log_axis(axes.yaxis)
    else:
        axes.set_ylabel("perplexity")
    if along == "density":
        axes.set_xlabel("density (share of causal blocks kept)")
    else:
        style.length_axis(axes, sorted({point.row.length for point in points}))


def _note(rows: Sequence[Row], left_out: Sequence[Row]) -> str:
    counts = count_range((row.samples for row in rows), "–")
    text, device = rows[0].haystack, rows[0].device
    single = "; none where there is one document" if any(row.samples == 1 for row in rows) else ""
    plural, bars = "" if counts == "1" else "s", "bars and band" if any(row.is_baseline for row in rows) else "bars"
    of_a_length = " of a length" if len({row.length for row in rows}) > 1 else ""
    request = request_note([row for row in rows if not off_density(row)], left_out)
    return (
        f"{request}The same {counts} document{plural} of {text} for all{of_a_length}, {bars}: 95 % interval over "
        f"documents{single}.\nMeasured on {device}."
    )
