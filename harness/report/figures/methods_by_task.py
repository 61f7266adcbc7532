"""Accuracy by task and method at one sparsity: which tasks an average loses its points on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from harness.report.at_request import at_request
from harness.report.figures import heatmap, style
from harness.report.figures.picture_rows import scored_rows, with_tasks
from harness.report.lines import rows_by_line
from harness.report.notes import count_range, request_note
from harness.report.rows import Row
from harness.report.stale import ROWS
from harness.study.columns import AVERAGE
from harness.study.schema import Status

NAMES, NARROW = 3.4, 0.36
"""Inches of what stands around the columns, and that a column's number needs."""


def write(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write `by_task.png` for methods at one length and sparsity on three tasks or more, one per model and device."""
    paths: list[Path] = []
    for (model, device), (averages, single) in sorted(with_tasks(scored_rows(rows)).items()):
        members = averages + single
        compared = at_request(averages, single)
        sparse = [row for row in compared.averages + compared.tasks if not row.is_baseline]
        places = {(row.length, row.sparsity) for row in members if not row.is_baseline}
        tasks = {row.task for row in sparse} - {AVERAGE}
        if len(places) != 1 or len(tasks) < 3 or len(rows_by_line(sparse)) < 2:
            continue
        suffix = f"_{len(paths)}" if paths else ""
        paths.append(style.save(draw(members, model, device), folder / f"by_task{suffix}.png", mark=ROWS))
    return paths


def draw(rows: Sequence[Row], model: str, device: str) -> Figure:
    """Return the figure for rows of one model and device, single tasks and averages: dense first, the methods by their
    average. Rows off the density asked for are left out."""
    compared = at_request([row for row in rows if row.task == AVERAGE], [row for row in rows if row.task != AVERAGE])
    rows = compared.averages + compared.tasks
    sparse = [row for row in rows if not row.is_baseline]
    single = [row for row in sparse if row.task != AVERAGE]
    length, sparsity = sparse[0].length, sparse[0].sparsity
    tasks = [*sorted({row.task for row in single}), AVERAGE]
    columns = _columns(rows, sparse, tasks, compared.left_out)
    table = np.full((len(tasks), len(columns)), np.nan)
    gated = np.zeros(table.shape, dtype=bool)
    for x, members in enumerate(columns.values()):
        for row in members:
            y = tasks.index(row.task)
            table[y, x], gated[y, x] = row.scored.percent, row.status == Status.GATED
    column = max(NARROW, min(0.5, (style.WIDEST_PAGE - NAMES) / len(columns)))
    figure = style.new_figure(NAMES + column * len(columns), 2.6 + 0.28 * len(tasks))
    with matplotlib.rc_context(style.HEATMAP_RC):
        axes = figure.add_subplot()
        heatmap.panel(axes, table, tasks, list(columns), label="", gated=gated)
        axes.tick_params(axis="x", labelrotation=40)
        for text in axes.get_xticklabels():
            text.set_horizontalalignment("right")
        axes.axhline(len(tasks) - 1.5, color="white", linewidth=2)
        at = "at their own defaults" if sparsity is None else f"at density {1 - sparsity:.3g}"
        style.set_title(figure, f"{model} at {style.tokens(length)} tokens, methods {at}: accuracy by task (%)")
        counts = count_range((row.samples for row in single), " to ")
        brackets = "In brackets: held back by a check. " if gated.any() else ""
        widest = 100 * max(row.scored.accuracy_high - row.scored.accuracy_low for row in single)
        style.set_small_print(
            figure,
            f"{request_note(compared.averages, compared.left_out)}The same {counts} prompts a task for all; "
            f"95 % intervals of a task are up to {widest:.0f} points wide, all of them in "
            f"leaderboard.csv. {brackets}Measured on {device}.",
        )
    return figure


def _columns(rows: Sequence[Row], sparse: Sequence[Row], tasks: Sequence[str], left_out: Sequence[Row]) -> dict[str, list[Row]]:
    """Return the rows of each column by its name: dense attention on the same tasks, then the lines by their averages."""
    lines = rows_by_line(sparse, beside=left_out)
    means = {
        name: max((row.scored.accuracy for row in members if row.task == AVERAGE), default=0.0)
        for name, members in lines.items()
    }
    dense = [row for row in rows if row.is_baseline and row.length == sparse[0].length and row.task in tasks]
    if not dense:
        return lines
    return {dense[0].method: dense, **{name: lines[name] for name in sorted(lines, key=means.__getitem__, reverse=True)}}
