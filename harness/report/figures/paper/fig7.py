"""Fig 7: how many times as fast as dense attention one layer is, by measured sparsity, every method, panels by length."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from harness.report.figures import style
from harness.report.figures.looks import BOUND_DASH, DENSE_DASH, INK, Look, is_bound, line_look, looks_of
from harness.report.figures.paper import sheet
from harness.report.figures.paper.drawing import Drawing, Value, command_of, suffix_of
from harness.report.figures.paper.item import Item
from harness.report.figures.paper.published import Published, of_item, sources
from harness.report.figures.paper.recorded import Recorded, fullest, grouped, notices_of, timed_alike
from harness.report.figures.signs import signs_note
from harness.report.lines import line_names
from harness.report.notes import off_density
from harness.report.rows import Row, Times

FEWEST_LENGTHS = 2
"""Lengths of the paper that a model needs for a picture of its own beside the first."""


def draw(item: Item, recorded: Recorded) -> list[Drawing]:
    """Return a picture for each model and device whose methods were timed at two lengths of the paper; one at least."""
    values = of_item(item.name)
    lengths = sorted({_length(value.panel) for value in values})
    rows = [row for row in timed_alike(recorded.timed_rows()) if not row.is_baseline and row.length in lengths]
    sets = grouped(rows, lambda row: (row.model, row.device))
    shown = fullest(sets, lambda own: len({(row.method, row.length) for row in own}), _has_lengths)
    if not shown:
        return [_draw(item, values, lengths, [], 0)]
    return [_draw(item, values, lengths, sets[key], number) for number, key in enumerate(shown)]


def _has_lengths(rows: Sequence[Row]) -> bool:
    """Return whether rows are enough for a picture of their own."""
    return len({row.length for row in rows}) >= FEWEST_LENGTHS


def _length(panel: str) -> int:
    return int(panel.removesuffix("k")) * 1024


def _draw(item: Item, values: Sequence[Published], lengths: Sequence[int], rows: Sequence[Row], number: int) -> Drawing:
    model, device = (rows[0].model, rows[0].device) if rows else ("", "")
    of_model = f", {model}" if model else ""
    figure = sheet.new_sheet(sheet.PAGE, 2.5, f"{item.number}: speed-up of attention by measured sparsity{of_model}")
    looks, names = looks_of(row.method for row in rows), line_names(rows)
    drawn: list[Value] = []
    missing = []
    speedups = [_times(row).speedup for row in rows] + [value.y for value in values]
    with matplotlib.rc_context(sheet.RC):
        for axes, length in zip(figure.subplots(1, len(lengths), sharey=True), lengths, strict=True):
            panel = style.tokens(length)
            axes.set_title(panel, loc="left", fontweight="bold")
            published = [value for value in values if _length(value.panel) == length]
            sheet.draw_published(axes, 0, [value.place for value in published], [value.y for value in published])
            members = sorted((row for row in rows if row.length == length), key=lambda row: (row.method, row.sparsity or 0.0))
            for row in members:
                _draw_row(axes, row, looks[row.method])
                drawn.append(_value(panel, row, names[id(row)]))
            if not members:
                sheet.set_words(axes, "not measured", 0.08)
                missing.append(panel)
            _set_axes(axes, speedups)
        figure.axes[0].set_ylabel("times as fast as dense")
        keys = [
            Line2D([], [], color=look.colour, marker=look.marker, linestyle="", markersize=3.5, label=method)
            for method, look in looks.items()
        ]
        keys += [sheet.published_key(0, series) for series in dict.fromkeys(value.series for value in values)]
        keys.append(Line2D([], [], color=INK, linestyle=BOUND_DASH, linewidth=0.8, label="ideal: 1 ÷ density"))
        sheet.finish(figure, _note(item, values, rows), keys, 6)
    names_of = [style.tokens(length) for length in lengths]
    measured = [panel for panel in names_of if panel not in missing]
    return Drawing(figure, drawn, values, model, device, suffix_of(number, model), measured, missing)


def _times(row: Row) -> Times:
    """Return the times of a row that is known to have some. Raises ValueError in any other."""
    if row.times is None:
        raise ValueError(f"row of {row.method} at {row.length}: it was not timed")
    return row.times


def _draw_row(axes: Axes, row: Row, look: Look) -> None:
    times = _times(row)
    sheet.draw_mark(axes, 1 - times.density, times.speedup, line_look(look), row, ringed=row.sparsity is None)


def _set_axes(axes: Axes, speedups: Sequence[float]) -> None:
    """Set the axes, and draw dense attention and what time in proportion to the density would give."""
    axes.axhline(1.0, color=INK, linewidth=0.9, linestyle=DENSE_DASH, zorder=1)
    sparsities = np.linspace(0, 0.98, 50)
    axes.plot(sparsities, 1 / (1 - sparsities), color=INK, linewidth=0.8, linestyle=BOUND_DASH, zorder=1)
    low, high = min(speedups, default=1.0), max(speedups, default=1.0)
    sheet.set_log(axes, low, high)
    axes.set_ylim(min(low, 1.0) / 1.3, max(high, 2.0) * 1.4)
    axes.set_xlim(-0.03, 1.0)
    axes.set_xlabel("sparsity, measured")


def _value(panel: str, row: Row, name: str) -> Value:
    times = _times(row)
    low = times.dense_ms / times.total_high if times.total_high else None
    high = times.dense_ms / times.total_low if times.total_low else None
    shown = "hollow" if off_density(row) else "yes"
    own = (panel, name, round(1 - times.density, 6), times.speedup, "times", row.study, row.device, low, high, shown)
    return Value(*own, command_of(row.settings))


def _note(item: Item, values: Sequence[Published], rows: Sequence[Row]) -> str:
    text = f"Grey: {sources(values)}, over FlashAttention-2. "
    if not rows:
        return text + item.how_to_make
    bounds = sorted({row.method for row in rows if is_bound(row.method)})
    bound = f"Bounds: {', '.join(bounds)}. " if bounds else ""
    usable = [row for row in rows if row.method not in bounds]  # a bound has no line here that could be dotted
    signs = signs_note(usable, ringed=any(row.sparsity is None for row in rows), dashed=True)
    return (
        f"{text}Measured on {rows[0].device}: one layer's attention, selection included, over the fastest dense kernel of the "
        f"same run, at the density of the prompt that was timed; medians, the CSV has 10th and 90th percentiles. {signs}{bound}"
        f"{notices_of(rows)}Studies: {', '.join(sorted({row.study for row in rows}))}."
    )
