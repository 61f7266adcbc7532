"""Accuracy against what it costs: density in one panel, time in the other, one line a method, dense as a band."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from pathlib import Path

import matplotlib
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from harness.report.figures import picture_rows, style
from harness.report.figures.looks import DENSE_DASH, GREY, INK, PAPER, mixed
from harness.report.figures.pareto_axes import DECODE, DENSITY, Axis, axes_of
from harness.report.figures.pareto_lines import ParetoLines, is_native, pareto_lines
from harness.report.figures.pareto_panel import draw_panel
from harness.report.figures.signs import FADED, SIZE, SMALL, pale_note, signs_note
from harness.report.front import is_bound_row, is_usable
from harness.report.notes import off_density
from harness.report.rows import Row
from harness.report.stale import ROWS

COLUMNS = 2
"""Panels beside each other: more make the letters too small for a column of text."""
PANEL = (4.9, 3.3)
"""Inches of a panel with its labels."""
FLAT = 2.5
"""Inches of a panel's height where more than three are above each other."""
LONGEST_SLUG = 60
"""Letters that a name has in the name of a file."""

Place = tuple[int, Axis]
"""The length and the cost of a panel."""


def write(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write `pareto.png` (all lengths) and, of several lengths, one `pareto_LENGTH.png` each; one set per model and
    device, whose names the files then carry, and one for each set of prompts beside the main one. Rows without accuracy are
    left out; `harness.report.figures.signs` says how others look. A study of dense attention alone, or of block sizes at one
    sparsity (see `by_block_size`), has no curves and gets none."""
    sets = picture_rows.by_model(rows)
    paths, suffixes = [], _suffixes(list(dict.fromkeys(map(picture_rows.main_key, sets.values()))))
    for (model, device), members in sets.items():
        if not _has_curves(members):
            continue
        suffix, prompts = suffixes[picture_rows.main_key(members)], picture_rows.prompts_suffix(members)
        lengths = sorted({row.length for row in members})
        paths.append(style.save(draw(members, lengths, model, device), folder / f"pareto{suffix}{prompts}.png", mark=ROWS))
        for length in lengths if len(lengths) > 1 else []:
            single = [row for row in members if row.length == length]
            path = folder / f"pareto{suffix}_{length}{prompts}.png"
            paths.append(style.save(draw(single, [length], model, device), path, mark=ROWS))
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
    """Return the figure for average rows of one model and device: a row of panels for each length, its costs side by side, or
    lengths side by side where there is one cost. Methods that decode sparsely after a dense prefill have one panel each: the
    timings are of prefill."""
    kinds = axes_of(rows)
    lines = pareto_lines(rows, kinds)
    grid = _grid(lengths, kinds)
    columns = max(map(len, grid))
    width = PANEL[0] * columns if columns > 1 else style.NARROWEST
    handles = _handles(rows, lines)
    legend = style.legend_height([str(handle.get_label()) for handle in handles], width)
    panel = 3.8 if len(grid) == 1 else PANEL[1] if len(grid) < 4 else FLAT
    figure = style.new_figure(width, panel * len(grid) + legend + 0.9)
    with matplotlib.rc_context(style.RC):
        places = figure.add_gridspec(len(grid), columns)
        accuracies = [end for row in rows for end in picture_rows.interval(row)]
        for i, panels in enumerate(grid):
            for j, (length, axis) in enumerate(panels):
                axes = figure.add_subplot(places[i, j])
                style.percent_axis(axes, accuracies)
                draw_panel(axes, [row for row in rows if row.length == length], axis, lines)
                if j:
                    axes.set_ylabel("")
                if len(lengths) > 1:
                    axes.set_title(f"{style.tokens(length)} tokens", loc="left", fontweight="bold")
        style.set_title(figure, _title(rows, lengths, model))
        style.set_small_print(figure, _note(rows, lines, device))
        style.add_legend(figure, handles)
    return figure


def _grid(lengths: Sequence[int], kinds: Sequence[Axis]) -> list[list[Place]]:
    """Return the panels, row by row: the costs of a length side by side; of one cost, lengths side by side."""
    if len(kinds) > 1:
        return [[(length, kind) for kind in kinds] for length in lengths]
    return [[(length, kinds[0]) for length in lengths[start : start + COLUMNS]] for start in range(0, len(lengths), COLUMNS)]


def _handles(rows: Sequence[Row], lines: ParetoLines) -> list[Artist]:
    """Return the entries of the legend, with their names: dense attention, the lines by their mean accuracy, the front."""
    handles: list[Artist] = []
    if dense := next((row for row in rows if row.is_baseline), None):
        handles.append(
            Line2D([], [], color=INK, linestyle=DENSE_DASH, linewidth=1.2, marker="o", markersize=6, label=dense.method)
        )
    for name in lines.told_apart:
        look, members = lines.looks[name], lines.rows[name]
        hollow, on_line = all(map(off_density, members)), any(not off_density(row) and not is_native(row) for row in members)
        handles.append(
            Line2D(
                [],
                [],
                color=look.colour,
                marker=look.marker,
                fillstyle="full" if hollow else look.fill,
                markerfacecolor="none" if hollow else look.colour,
                markerfacecoloralt=mixed(look.colour, PAPER, FADED),
                markersize=SMALL if hollow else SIZE,
                linestyle=look.dash if on_line else "",
                linewidth=1.7,
                label=f"{name}, a bound" if is_bound_row(members[0]) else name,
            )
        )
    if any(map(is_usable, rows)):
        handles.append(Line2D([], [], color=GREY, alpha=0.3, linewidth=4.5, label="front"))
    return handles


def _note(rows: Sequence[Row], lines: ParetoLines, device: str) -> str:
    """Return the small print: what the signs mean, and what is measured."""
    coloured = [row for name in lines.told_apart for row in lines.rows[name]]
    dense = any(row.is_baseline for row in rows)
    signs = signs_note(coloured, ringed=any(map(is_native, coloured)), dashed=dense, front=any(map(is_usable, rows)))
    bars = "bars and band" if dense else "bars"
    pale = pale_note(lines.pale, "points on the front, then accuracy")
    return pale + signs + picture_rows.note(rows, device, bars=bars, gated="")


def _title(rows: Sequence[Row], lengths: Sequence[int], model: str) -> str:
    at = f" at {style.tokens(lengths[0])} tokens" if len(lengths) == 1 else ""
    if axes_of(rows) == (DECODE,):
        return f"{model}{at}: accuracy of sparse decoding"
    if axes_of(rows) == (DENSITY,):
        return f"{model}{at}: accuracy against density"
    return f"{model}{at}: accuracy against density and time"
