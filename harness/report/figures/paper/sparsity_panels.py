"""Perplexity by sparsity, panels by length: published values in the upper row, a model's in the lower one (Fig 5)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes

from harness.report.common_documents import on_common_documents
from harness.report.figures import style
from harness.report.figures.looks import DENSE_DASH, INK, LineLook, is_bound, line_looks, looks_of_one_method
from harness.report.figures.paper import sheet
from harness.report.figures.paper.drawing import Drawing, Value, command_of, suffix_of
from harness.report.figures.paper.empty import empty_drawing
from harness.report.figures.paper.item import Item
from harness.report.figures.paper.published import Published, by_series, of_item, sources
from harness.report.figures.paper.recorded import fullest, grouped
from harness.report.figures.signs import signs_note
from harness.report.lines import rows_by_line
from harness.report.notes import count_range, off_density
from harness.report.rows import Perplexity, Row
from harness.study.columns import PERPLEXITY

MOST_LINES = 8
"""Lines in a panel at most: those measured at most lengths, of these the lowest. All are in the CSV."""
WIDE = 2
"""Times the lowest perplexity from which on the axis is a logarithm, so that one bad line does not flatten all others."""
FEWEST_LENGTHS = 2
"""Lengths that a model needs for a picture of its own beside the first."""


FEW = 3
"""Lines of one method that its own colour still tells apart."""


@dataclass(frozen=True)
class Panel:
    """The rows of one length, and what the paper says of it."""

    length: int
    rows: Sequence[Row]
    published: Sequence[Published]

    @property
    def name(self) -> str:
        """Return the length as the panel is called."""
        return style.tokens(self.length)


def draw_models(item: Item, rows: Sequence[Row]) -> list[Drawing]:
    """Return a picture for each model, device and text that has perplexities among the rows, the fullest first."""
    measured = [row for row in on_common_documents(_with_perplexity(rows)) if not row.prompt_set]
    sets = grouped(measured, lambda row: (row.model, row.device, row.haystack))
    values = of_item(item.name)
    lengths = {_length(value.panel) for value in values}

    def fill(own: Sequence[Row]) -> int:
        return 1000 * len({row.length for row in own} & lengths) + len(own)

    shown = fullest(sets, fill, lambda own: _lengths_of(own) >= FEWEST_LENGTHS)
    if not shown:
        return [_draw(item, [], values, 0)]
    return [_draw(item, sets[key], values, number) for number, key in enumerate(shown)]


def _with_perplexity(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.task == PERPLEXITY and _is_placed(row)]


def _is_placed(row: Row) -> bool:
    """Return whether a row has a perplexity at a known density, of prompts that were read whole."""
    return row.perplexity is not None and row.density is not None and row.prefill_chunk is None


def _lengths_of(rows: Sequence[Row]) -> int:
    return len({row.length for row in rows})


def _length(panel: str) -> int:
    """Return the tokens that the name of a panel stands for."""
    return int(panel.removesuffix("k")) * 1024 if panel.endswith("k") else int(panel)


def _draw(item: Item, rows: Sequence[Row], values: Sequence[Published], number: int) -> Drawing:
    panels = [
        Panel(length, [row for row in rows if row.length == length], [v for v in values if _length(v.panel) == length])
        for length in sorted({row.length for row in rows} | {_length(value.panel) for value in values})
    ]
    if not panels:
        return empty_drawing(item)
    names = _shown_names(rows)
    model, device = (rows[0].model, rows[0].device) if rows else ("", "")
    title = f"{item.number}: perplexity by sparsity" + (f", {model}" if model else "")
    figure = sheet.new_sheet(sheet.PAGE, 3.0, title)
    drawn: list[Value] = []
    with matplotlib.rc_context(sheet.RC):
        grid = figure.subplots(2, len(panels), squeeze=False, sharex=True, sharey="row")
        shades = {series: place for place, series in enumerate(by_series(values))}
        bounds = _range(rows, names)
        wide = bounds is not None and bounds[1] > WIDE * bounds[0]
        least = _least_sparsity(rows, values)
        for upper, lower, panel in zip(*grid, panels, strict=True):
            _draw_published(upper, panel, shades)
            if panel.rows:
                drawn += _draw_rows(lower, panel, rows, names)
            else:
                sheet.set_words(lower, "not measured")
            lower.set_xlabel("sparsity")
            lower.set_xlim(least, 1.0)
            lower.set_xticks([0.5, 0.7, 0.9], [".5", ".7", ".9"])
            if wide and bounds is not None:
                sheet.set_log(lower, *bounds)
        grid[0][0].set_ylabel("perplexity, published")
        grid[1][0].set_ylabel("measured, log scale" if wide else "perplexity, measured")
        keys = [*(sheet.styled_key(look, name) for name, look in names.items()), *_published_keys(values)]
        sheet.finish(figure, _note(item, rows, panels, values, names), keys, 5)
    return Drawing(
        figure,
        drawn,
        values,
        model,
        device,
        suffix_of(number, model),
        [panel.name for panel in panels if panel.rows],
        [panel.name for panel in panels if not panel.rows],
    )


def _shown_names(rows: Sequence[Row]) -> Mapping[str, LineLook]:
    """Return the lines that are drawn with their looks: those measured at most lengths, of these the lowest."""
    lines = {name: members for name, members in _lines(rows).items() if not members[0].is_baseline}

    def rank(name: str) -> tuple[int, float, str]:
        losses = [math.log(_perplexity(row).perplexity) for row in lines[name]]
        return -_lengths_of(lines[name]), fmean(losses), name

    shown = sorted(sorted(lines, key=rank)[:MOST_LINES])
    methods = {name: lines[name][0].method for name in shown}
    if len(shown) > FEW and len(set(methods.values())) == 1:
        return looks_of_one_method(shown)
    return line_looks(methods, bounds=[name for name, method in methods.items() if is_bound(method)])


def _lines(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return the rows of every line, named alike at all lengths, the sparsest last."""
    return {name: sorted(members, key=_sparsity) for name, members in rows_by_line(rows).items()}


def _sparsity(row: Row) -> float:
    """Return the measured sparsity of a row."""
    return 1 - (row.density or 0.0)


def _perplexity(row: Row) -> Perplexity:
    """Return the perplexity of a row that is known to have one. Raises ValueError in any other."""
    if row.perplexity is None:
        raise ValueError(f"row of {row.method} at {row.length}: it has no perplexity")
    return row.perplexity


def _range(rows: Sequence[Row], names: Mapping[str, LineLook]) -> tuple[float, float] | None:
    shown = [_perplexity(row).perplexity for name, members in _lines(rows).items() for row in members if name in names]
    return (min(shown), max(shown)) if shown else None


def _least_sparsity(rows: Sequence[Row], values: Sequence[Published]) -> float:
    """Return where the axis of sparsities begins: a little below the least, dense attention's aside."""
    places = [_sparsity(row) for row in rows if not row.is_baseline] + [value.place for value in values if value.place]
    return max(-0.04, min(places, default=0.0) - 0.06)


def _draw_published(axes: Axes, panel: Panel, shades: Mapping[str, int]) -> None:
    axes.set_title(panel.name, loc="left", fontweight="bold")
    if not panel.published:
        sheet.set_words(axes, "not published")
    for series, values in by_series(panel.published).items():
        xs, ys = [value.place for value in values], [value.y for value in values]
        if xs == [0.0]:
            axes.axhline(ys[0], color=sheet.PUBLISHED[shades[series] % 4], linewidth=0.9, linestyle=DENSE_DASH)
        else:
            sheet.draw_published(axes, shades[series], xs, ys)


def _draw_rows(axes: Axes, panel: Panel, rows: Sequence[Row], names: Mapping[str, LineLook]) -> list[Value]:
    """Draw the rows of a length, and return all of them as values."""
    values = []
    for name, members in sorted(_lines(rows).items()):
        own = [row for row in members if row.length == panel.length]
        if own and own[0].is_baseline:
            axes.axhline(_perplexity(own[0]).perplexity, color=INK, linewidth=0.9, linestyle=DENSE_DASH)
        elif name in names:
            _draw_line(axes, own, names[name])
        values += [_value(row, name, panel, shown=name in names or row.is_baseline) for row in own]
    return values


def _draw_line(axes: Axes, rows: Sequence[Row], look: LineLook) -> None:
    joined = [row for row in rows if not off_density(row)]
    xs, ys = [_sparsity(row) for row in joined], [_perplexity(row).perplexity for row in joined]
    axes.plot(xs, ys, color=look.colour, linestyle=look.dash, linewidth=1.0, zorder=3)
    for row in rows:
        perplexity = _perplexity(row)
        low, high = perplexity.perplexity_low, perplexity.perplexity_high
        if low is not None and high is not None and not off_density(row):
            axes.plot([_sparsity(row)] * 2, [low, high], color=look.colour, linewidth=0.5, alpha=0.5, zorder=2)
        sheet.draw_mark(axes, _sparsity(row), perplexity.perplexity, look, row)


def _value(row: Row, name: str, panel: Panel, *, shown: bool) -> Value:
    perplexity = _perplexity(row)
    return Value(
        panel.name,
        name,
        round(_sparsity(row), 6),
        perplexity.perplexity,
        "perplexity",
        row.study,
        row.device,
        perplexity.perplexity_low,
        perplexity.perplexity_high,
        "no" if not shown else "hollow" if off_density(row) else "yes",
        command_of(row.settings),
    )


def _published_keys(values: Sequence[Published]) -> list[Artist]:
    return [
        sheet.published_key(number, series, dense=all(value.place == 0 for value in members))
        for number, (series, members) in enumerate(by_series(values).items())
    ]


def _note(
    item: Item, rows: Sequence[Row], panels: Sequence[Panel], values: Sequence[Published], names: Mapping[str, LineLook]
) -> str:
    """Return what the reader must know."""
    text = f"Upper row, grey: {sources(values)}.\n" if values else ""
    if not rows:
        return text + item.how_to_make
    counts = ", ".join(
        f"{count_range((row.samples for row in panel.rows), '–')} at {panel.name}" for panel in panels if panel.rows
    )
    others = sorted(name for name, members in _lines(rows).items() if name not in names and not members[0].is_baseline)
    drawn = [row for name, members in _lines(rows).items() if name in names for row in members]
    signs = signs_note(drawn, dashed=True)
    left_out = f"In the CSV alone: {', '.join(others)}. " if others else ""
    empty = f" Empty panels: {item.makes_rows}" if any(not panel.rows for panel in panels) and item.makes_rows else ""
    return (
        f"{text}Lower row: measured on {rows[0].device}; the same documents of {rows[0].haystack} for all of a length "
        f"({counts}), bars 95 % over documents. {signs}{left_out}Each row has a scale of its own.{empty}"
    )
