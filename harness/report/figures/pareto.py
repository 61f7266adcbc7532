"""Accuracy against what it costs: density in one panel, time in the other, one line a method, dense as a band."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from statistics import fmean

import matplotlib
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from harness.report.figures import picture_rows, style
from harness.report.figures.pareto_axes import DECODE, DENSITY, Axis, axes_of
from harness.report.figures.pareto_lines import LineLook, Looks, colour_name, line_looks_of, line_rows, lines_of
from harness.report.figures.pareto_panel import draw_panel
from harness.report.notes import off_density
from harness.report.rows import Row

COLUMNS = 3
"""Lengths beside each other before a new pair of panel rows begins."""
LEGEND = 0.9
"""Inches of what stands beside the names next to the panels: line, marker and margins."""
LONGEST_SLUG = 60
"""Letters that a name has in the name of a file."""
LONGEST, LONGEST_OF_SEVERAL = 26, 14
"""Letters of a name that leave a panel room for its lines, alone or beside other panels."""

Place = tuple[int, Axis]
"""The length and the cost of a panel."""


def write(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write `pareto.png` (all lengths) and, of several lengths, one `pareto_LENGTH.png` each; one set per model and
    device, whose names the files then carry, and one for each set of prompts beside the main one. Rows without accuracy are
    left out; gated ones are hollow, and those off the density asked for small, hollow and off the line. A study of dense
    attention alone, or of block sizes at one sparsity (see `by_block_size`), has no curves and gets none."""
    sets = picture_rows.by_model(rows)
    paths, suffixes = [], _suffixes(list(dict.fromkeys(map(picture_rows.main_key, sets.values()))))
    for (model, device), members in sets.items():
        if not _has_curves(members):
            continue
        suffix, prompts = suffixes[picture_rows.main_key(members)], picture_rows.prompts_suffix(members)
        lengths = sorted({row.length for row in members})
        paths.append(style.save(draw(members, lengths, model, device), folder / f"pareto{suffix}{prompts}.png"))
        for length in lengths if len(lengths) > 1 else []:
            single = [row for row in members if row.length == length]
            path = folder / f"pareto{suffix}_{length}{prompts}.png"
            paths.append(style.save(draw(single, [length], model, device), path))
    return paths


def _has_curves(rows: Sequence[Row]) -> bool:
    """Return whether there are sparse methods, and more than single points of them."""
    sparse = [row for row in rows if not row.is_baseline]
    only_blocks = len({row.block_size for row in sparse}) > 1 and len({row.sparsity for row in sparse}) == 1
    return bool(sparse) and not only_blocks


def _suffixes(sets: Sequence[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """Return what the files of each model and device are called by, nothing where there is one. Two whose names differ in what
    file names leave out alone are numbered from the second on."""
    suffixes: dict[tuple[str, str], str] = {}
    for model, device in sets:
        suffix = f"_{_slug(model)}_{_slug(device)}" if len(sets) > 1 else ""
        twins = list(suffixes.values())
        number = next(number for number in count(1) if (f"{suffix}-{number}" if number > 1 else suffix) not in twins)
        suffixes[model, device] = f"{suffix}-{number}" if number > 1 else suffix
    return suffixes


def _slug(text: str) -> str:
    """Return a name as file names have it, without what stands in brackets."""
    words = "".join(c if c.isalnum() else " " for c in text.split("(")[0]).split()
    return "-".join(words).lower()[:LONGEST_SLUG].strip("-") or "unnamed"


def draw(rows: Sequence[Row], lengths: Sequence[int], model: str, device: str) -> Figure:
    """Return the figure for average rows of one model and device: for one length two panels side by side, for several a
    panel above the other, lengths from left to right. Methods that decode sparsely after a dense prefill have one panel each:
    the timings are of prefill."""
    kinds = axes_of(rows)
    with_legend = _needs_legend(rows, kinds[0])
    looks = style.looks_of(colour_name(row) for row in rows if not row.is_baseline)
    line_looks = line_looks_of(rows, kinds[0], looks, with_native=not with_legend)
    names = LEGEND + style.NAME_LETTER * max(map(len, [*line_looks, *looks]), default=0) if with_legend else 0.0
    grid = _grid(lengths, kinds)
    if len(lengths) == 1:
        figure = style.new_figure((10.5 if len(kinds) > 1 else 6.0) + (1.5 if with_legend else 0.0), 4.6)
    else:
        figure = style.new_figure(4.6 * min(COLUMNS, len(lengths)) + names, 3.7 * len(grid))
    with matplotlib.rc_context(style.RC):
        columns = max(map(len, grid))
        inches = (figure.get_figwidth() - (names if len(lengths) > 1 else 0.0)) / columns - 0.7
        for i, places in enumerate(grid):
            for j, (length, axis) in enumerate(places):
                axes = figure.add_subplot(len(grid), columns, i * columns + j + 1)
                draw_panel(axes, rows, length, axis, looks, line_looks, inches, named=not with_legend)
                if len(lengths) > 1:
                    axes.set_title(f"{style.tokens(length)} tokens", loc="left", fontweight="bold")
        style.set_title(figure, _title(rows, lengths, model), beside=names)
        if with_legend:
            _draw_legend(figure, rows, kinds[0], looks, line_looks)
        native = "Ringed: at the method's own defaults. " if with_legend and any(row.sparsity is None for row in rows) else ""
        off = "Small, hollow, off the line: not at the density asked for. " if any(map(off_density, rows)) else ""
        style.set_small_print(figure, native + off + picture_rows.note(rows, device, bars="" if with_legend else "bars"))
    return figure


def _grid(lengths: Sequence[int], kinds: Sequence[Axis]) -> list[list[Place]]:
    """Return the panels, row by row: of one length its costs side by side, of several the costs below each other."""
    if len(lengths) == 1:
        return [[(lengths[0], kind) for kind in kinds]]
    grid: list[list[Place]] = []
    for start in range(0, len(lengths), COLUMNS):
        grid += [[(length, kind) for length in lengths[start : start + COLUMNS]] for kind in kinds]
    return grid


def _needs_legend(rows: Sequence[Row], axis: Axis) -> bool:
    """Return whether methods or lines are too many, or their names too long, to stand at the lines."""
    lines = lines_of(line_rows(rows, with_native=False), axis)
    alone = len({row.length for row in rows}) == 1 and len(axes_of(rows)) == 1
    longest = LONGEST if alone else LONGEST_OF_SEVERAL
    methods = {row.method for row in rows if not row.is_baseline}
    return max(len(methods), len(lines)) > style.MANY or max(map(len, lines), default=0) > longest


def _draw_legend(figure: Figure, rows: Sequence[Row], axis: Axis, looks: Looks, line_looks: Mapping[str, LineLook]) -> None:
    """Write names beside the panels where there are too many to stand at their lines, by mean accuracy."""
    lines = lines_of(line_rows(rows, with_native=False), axis)
    names = sorted(lines, key=lambda name: fmean(row.scored.accuracy for row in lines[name]), reverse=True)
    handles = []
    for name in names:
        colour, marker, dash = line_looks[name]
        if all(map(off_density, lines[name])):
            handles.append(Line2D([], [], color=colour, marker=marker, markerfacecolor="none", linestyle="", markersize=4))
        else:
            handles.append(Line2D([], [], color=colour, marker=marker, linestyle=dash, linewidth=1.8, markersize=6))
    with_lines = {colour_name(members[0]) for members in lines.values()}
    points_only = [name for name in looks if name not in with_lines]  # ringed points, no line
    for name in points_only:
        colour, marker = looks[name]
        handles.append(Line2D([], [], color=colour, marker=marker, linestyle="", markersize=6))
    labels = [f" {name}" if name.startswith("_") else name for name in names + points_only]  # matplotlib hides those
    figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=9, handlelength=4)


def _title(rows: Sequence[Row], lengths: Sequence[int], model: str) -> str:
    at = f" at {style.tokens(lengths[0])} tokens" if len(lengths) == 1 else ""
    if axes_of(rows) == (DECODE,):
        return f"{model}{at}: accuracy of sparse decoding"
    if axes_of(rows) == (DENSITY,):
        return f"{model}{at}: accuracy against density"
    return f"{model}{at}: what is left of the accuracy, and what it costs"
