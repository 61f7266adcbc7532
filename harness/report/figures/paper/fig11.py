"""Fig 11: memory and time of the kernel that makes the block map of the true attention, by length."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
from matplotlib.axes import Axes

from harness.measure.kernel_speed.cases import BLOCK_MAP, FULL
from harness.report.figures.kernel_lines import NAMES
from harness.report.figures.looks import DENSE_DASH, INK, Look, series_looks
from harness.report.figures.paper import sheet
from harness.report.figures.paper.drawing import Drawing, Value, command_of, suffix_of
from harness.report.figures.paper.item import Item
from harness.report.figures.paper.published import Published, by_series, of_item, sources
from harness.report.figures.paper.recorded import Recorded, grouped
from harness.report.kernel_rows import KernelRow

PANELS = {"memory": "MiB", "time": "ms"}
"""The panels, with their units."""


def draw(item: Item, recorded: Recorded) -> list[Drawing]:
    """Return a picture for each shape and device whose map kernel was timed at two lengths at least; one at least."""
    rows = [row for row in recorded.kernel_rows("prefill") if row.op in (FULL, BLOCK_MAP) and row.batch == 1]
    sets = grouped(rows, lambda row: (row.shape, row.device, row.study))
    maps = {key: len({row.length for row in members if row.op == BLOCK_MAP}) for key, members in sets.items()}
    ordered = sorted((key for key in sets if maps[key] > 1), key=lambda key: (-maps[key], key))
    values = of_item(item.name)
    return [_draw(item, values, sets[key], number) for number, key in enumerate(ordered)] or [_draw(item, values, [], 0)]


def _draw(item: Item, values: Sequence[Published], rows: Sequence[KernelRow], number: int) -> Drawing:
    lines = _lines(rows)
    figure = sheet.new_sheet(sheet.COLUMN, 1.9, f"{item.number}: memory and time of the map kernel")
    drawn: list[Value] = []
    with matplotlib.rc_context(sheet.RC):
        for axes, (panel, unit) in zip(figure.subplots(1, 2), PANELS.items(), strict=True):
            published = [value for value in values if value.panel == panel]
            points_of = {name: _points(name, members, panel, unit) for name, (_, members) in lines.items()}
            for place, series in enumerate(by_series(published).values()):
                sheet.draw_published(axes, place, [value.place for value in series], [value.y for value in series])
            for name, (look, members) in lines.items():
                points, dense = points_of[name], members[0].op == FULL
                dash = DENSE_DASH if dense else "-"
                xs, ys = [float(value.x) for value in points], [value.y for value in points]
                axes.plot(xs, ys, color=look.colour, linestyle=dash, marker=look.marker, markersize=3, linewidth=0.9)
                drawn += points
            ours = [value for points in points_of.values() for value in points]
            places = [float(value.x) for value in ours] + [value.place for value in published]
            _set_axes(axes, f"{panel} ({unit})", places, [value.y for value in ours] + [value.y for value in published])
        keys = [sheet.line_key(look, name, dash=DENSE_DASH if m[0].op == FULL else "-") for name, (look, m) in lines.items()]
        keys += [sheet.published_key(n, name, how=own[0].certainty) for n, (name, own) in enumerate(by_series(values).items())]
        sheet.finish(figure, _note(item, values, rows), keys, 1)
    shape, device = (rows[0].shape, rows[0].device) if rows else ("", "")
    missing = [] if rows else list(PANELS)
    measured = list(PANELS) if rows else []
    return Drawing(figure, drawn, values, shape, device, suffix_of(number, f"{shape} {device}"), measured, missing)


def _lines(rows: Sequence[KernelRow]) -> dict[str, tuple[Look, list[KernelRow]]]:
    """Return the lines with their looks: the map kernel by its blocks, and the fastest dense kernel of each length."""
    maps = grouped((row for row in rows if row.op == BLOCK_MAP), lambda row: f"map, blocks of {row.block_size}")
    longest = max((row.length for members in maps.values() for row in members), default=0)
    looks = series_looks(maps)
    lines = {name: (looks[name], sorted(members, key=lambda row: row.length)) for name, members in maps.items()}
    dense = grouped((row for row in rows if row.op == FULL and row.length <= longest), lambda row: row.kernel)
    if dense and lines:
        at_end = {kernel: row.times.total_ms for kernel, members in dense.items() for row in members if row.length == longest}
        kernel = min(at_end or dense, key=lambda name: (at_end.get(name) or 0.0, name))
        members = sorted(dense[kernel], key=lambda row: row.length)
        lines[f"dense ({NAMES.get(kernel, kernel)})"] = (Look(INK, "o"), members)
    return lines


def _points(name: str, rows: Sequence[KernelRow], panel: str, unit: str) -> list[Value]:
    """Return the values of a line in a panel."""
    measured = [(row, row.peak_mib if panel == "memory" else row.times.total_ms) for row in rows]
    return [
        Value(panel, name, row.length, y, unit, row.study, row.device, command=command_of(row.settings))
        for row, y in measured
        if y is not None
    ]


def _set_axes(axes: Axes, title: str, places: Sequence[float], heights: Sequence[float]) -> None:
    axes.set_title(title, loc="left", fontweight="bold")
    axes.set_xlabel("length (tokens)")
    if not places:
        sheet.set_empty(axes, "not measured")
        return
    sheet.set_log(axes, min(heights), max(heights))
    sheet.set_lengths(axes, sorted(set(map(int, places))), most=4)


def _note(item: Item, values: Sequence[Published], rows: Sequence[KernelRow]) -> str:
    text = f"Grey: {sources(values)}. "
    if not rows:
        return text + item.how_to_make
    return (
        f"{text}Measured on {rows[0].device}: {rows[0].shape}'s attention, {rows[0].dtype}; memory is what a call needs beside "
        "its inputs. Dashed: dense attention, the fastest kernel at the longest length."
    )
