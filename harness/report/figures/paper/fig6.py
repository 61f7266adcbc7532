"""Fig 6: the time of attention with its selection, stacked, by sparsity, panels by length: published above, measured
below."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from harness.measure.kernel_speed.cases import FULL, SPARSE, UNIFORM
from harness.report.figures import style
from harness.report.figures.kernel_lines import NAMES
from harness.report.figures.looks import INK, method_look, mixed
from harness.report.figures.paper import sheet
from harness.report.figures.paper.drawing import Drawing, Value, command_of, suffix_of
from harness.report.figures.paper.item import Item
from harness.report.figures.paper.published import Published, of_item, sources
from harness.report.figures.paper.recorded import Recorded, grouped
from harness.report.kernel_rows import KernelRow
from harness.study.matching import Match

BLOCK = 64
"""Tokens of a block in the paper; its heads have a selection each."""
WIDTH = 0.62
"""Width of a bar, of the distance to the next."""


def draw(item: Item, recorded: Recorded) -> list[Drawing]:
    """Return a picture for each shape and device whose kernels were timed with a selection at a length of the paper."""
    values = of_item(item.name)
    lengths = sorted({_length(value.panel) for value in values})
    rows = [row for row in recorded.kernel_rows("prefill") if row.length in lengths and row.batch == 1]
    sets = grouped(rows, lambda row: (row.shape, row.device, row.study))
    lines = {key: stacked_line(members) for key, members in sets.items()}
    ordered = sorted((key for key in lines if lines[key]), key=lambda key: (-len(lines[key]), key))
    if not ordered:
        return [_draw(item, values, lengths, [], [], 0)]
    shown = [key for n, key in enumerate(ordered) if not n or len({row.length for row in lines[key]}) == len(lengths)]
    return [_draw(item, values, lengths, sets[key], lines[key], number) for number, key in enumerate(shown)]


def stacked_line(rows: Sequence[KernelRow]) -> list[KernelRow]:
    """Return the rows of one kernel on the blocks that a method selects, as the paper has it: blocks of BLOCK and a
    selection for each head, where that was timed; of several kernels the one with most rows, of these the fastest."""
    sparse = [
        row
        for row in rows
        if row.op == SPARSE
        and row.times.total_ms is not None
        and row.times.selection_ms is not None
        and row.full_rows is None
        and row.match != Match.OFF_DENSITY
    ]
    lines = grouped(sparse, lambda row: (row.index, row.kernel, row.block_size))

    def rank(key: tuple[str, str, int]) -> tuple[bool, bool, bool, int, float, tuple[str, str, int]]:
        members = lines[key]
        time = sum((row.times.total_ms or 0.0) / (row.dense_ms or 1.0) for row in members)
        drawn_at_random = members[0].method == UNIFORM
        return drawn_at_random, bool(members[0].shared), members[0].block_size != BLOCK, -len(members), time, key

    return lines[min(lines, key=rank)] if lines else []


def _length(panel: str) -> int:
    return int(panel.removesuffix("k")) * 1024


def _draw(
    item: Item,
    values: Sequence[Published],
    lengths: Sequence[int],
    rows: Sequence[KernelRow],
    line: Sequence[KernelRow],
    number: int,
) -> Drawing:
    shape, device = (line[0].shape, line[0].device) if line else ("", "")
    figure = sheet.new_sheet(sheet.PAGE, 3.3, f"{item.number}: time of one attention call, selection stacked on attention")
    drawn: list[Value] = []
    missing = []
    with matplotlib.rc_context(sheet.RC):
        for place, (upper, lower, length) in enumerate(zip(*figure.subplots(2, len(lengths)), lengths, strict=True)):
            _draw_published(upper, [value for value in values if _length(value.panel) == length])
            upper.set_title(f"{style.tokens(length)}", loc="left", fontweight="bold")
            dense = [row for row in rows if row.op == FULL and row.length == length and row.times.total_ms is not None]
            members = sorted((row for row in line if row.length == length), key=lambda row: row.sparsity or 0.0)
            if members:
                drawn += _draw_measured(lower, members, dense)
            else:
                sheet.set_empty(lower, "not measured")
                missing.append(style.tokens(length))
            if not place:
                upper.set_ylabel("ms, published")
                lower.set_ylabel("ms, measured")
        keys = [Patch(color=INK, label="dense attention, the fastest" if line else "dense attention")]
        if line:
            colour = method_look(line[0].method).colour
            keys += [
                Patch(color=colour, label=f"attention on {line[0].method}'s blocks, by {line[0].kernel}"),
                Patch(color=_light(colour), label=f"selection by {line[0].method}"),
            ]
        keys += [Patch(color=sheet.PUBLISHED[0], label="attention, published"), Patch(color="#d9d9d9", label="gate, published")]
        sheet.finish(figure, _note(item, values, line), keys, 5)
    names = [style.tokens(length) for length in lengths]
    measured = [name for name in names if name not in missing]
    return Drawing(figure, drawn, values, shape, device, suffix_of(number, f"{shape} {device}"), measured, missing)


def _light(colour: str) -> str:
    """Return the lighter shade that stands for selection."""
    return mixed(colour, "#ffffff", 0.55)


def _draw_published(axes: Axes, values: Sequence[Published]) -> None:
    times = [value for value in values if value.unit == "ms"]
    dense = next(value for value in times if value.place == 0)
    whole = {value.x: value for value in times if value.place and value.series == times[1].series}
    gates = {value.x: value.y for value in times if value.place and value.series != times[1].series}
    labels = {value.x: value.y for value in values if value.unit != "ms"}
    axes.bar(0, dense.y, WIDTH, color=sheet.PUBLISHED[3])
    _write_above(axes, 0, dense.y, f"{dense.y:.3g}")
    for place, (x, value) in enumerate(whole.items(), 1):
        gate = gates.get(x, 0.0)
        axes.bar(place, value.y - gate, WIDTH, color=sheet.PUBLISHED[0])
        axes.bar(place, gate, WIDTH, bottom=value.y - gate, color="#d9d9d9")
        _write_above(axes, place, value.y, _times_text(labels[x]))
    _set_places(axes, [value.x for value in whole.values()])


def _draw_measured(axes: Axes, rows: Sequence[KernelRow], dense: Sequence[KernelRow]) -> list[Value]:
    """Draw dense kernels and the stacked bars of one length, and return all as values."""
    panel = style.tokens(rows[0].length)
    values = []
    fastest = min(dense, key=lambda row: row.times.total_ms or 0.0, default=None)
    if fastest is not None and fastest.times.total_ms is not None:
        axes.bar(0, fastest.times.total_ms, WIDTH, color=INK)
        _write_above(axes, 0, fastest.times.total_ms, f"{fastest.times.total_ms:.3g}")
    for row in dense:
        shown = "yes" if row is fastest else "no"
        values.append(_value(panel, NAMES.get(row.kernel, row.kernel), 0.0, row.times.total_ms or 0.0, "ms", row, shown))
    colour = method_look(rows[0].method).colour
    for place, row in enumerate(rows, 1):
        times, sparsity = row.times, round(1 - (row.density or 0.0), 6)
        attention, selection, total = times.attention_ms or 0.0, times.selection_ms or 0.0, times.total_ms or 0.0
        axes.bar(place, attention, WIDTH, color=colour)
        axes.bar(place, selection, WIDTH, bottom=attention, color=_light(colour))
        if times.speedup is not None:
            _write_above(axes, place, attention + selection, _times_text(times.speedup))
            values.append(_value(panel, f"{row.kernel}, selection included", sparsity, times.speedup, "times", row, "yes"))
        values += [
            _value(panel, f"attention by {row.kernel}", sparsity, attention, "ms", row, "yes"),
            _value(panel, f"selection by {row.method}", sparsity, selection, "ms", row, "yes"),
            _value(panel, "both, timed as one", sparsity, total, "ms", row, "no"),
        ]
    _set_places(axes, [f"{row.sparsity:g}" for row in rows])
    axes.set_xlabel("sparsity")
    return values


def _times_text(speedup: float) -> str:
    """Return a speed-up as a label has it, three digits."""
    return f"{speedup:.1f}×" if speedup >= 10 else f"{speedup:.2f}×"


def _write_above(axes: Axes, place: float, height: float, text: str) -> None:
    axes.annotate(text, (place, height), (0, 1.5), textcoords="offset points", ha="center", va="bottom", fontsize=5.5)


def _set_places(axes: Axes, sparsities: Sequence[str]) -> None:
    axes.set_xticks(range(len(sparsities) + 1), ["0", *(text.lstrip("0") for text in sparsities)])
    axes.grid(axis="x", visible=False)
    axes.margins(y=0.12)


def _value(panel: str, series: str, x: float, y: float, unit: str, row: KernelRow, shown: str) -> Value:
    return Value(panel, series, x, y, unit, row.study, row.device, shown=shown, command=command_of(row.settings))


def _note(item: Item, values: Sequence[Published], line: Sequence[KernelRow]) -> str:
    text = f"Upper row, grey: {sources(values)}. Above bars: milliseconds, or speed-ups, there over FlashAttention-2.\n"
    if not line:
        return text + item.how_to_make
    row = line[0]
    heads = "one for the heads of a KV head" if row.shared else "one for each head"
    return (
        f"{text}Lower row: {row.shape}'s attention on {row.device}, {row.dtype}; blocks of {row.block_size} that "
        f"{row.index_name} selects, {heads}; selection timed: {row.selection}. Speed-ups are of both timed as one, over the "
        "fastest dense kernel of the same run. Medians; each panel has a scale of its own."
    )
