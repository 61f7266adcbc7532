"""Dense attention by task and length, a panel per model and way of asking: what a model does before anything is taken away."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from harness.report.figures import heatmap, style
from harness.report.figures.picture_rows import model_name, scored_rows
from harness.report.notes import count_range
from harness.report.rows import Row
from harness.report.stale import ROWS
from harness.study.columns import AVERAGE
from harness.study.schema import Status

NARROW, LETTER = 0.36, 0.078
"""Inches that a column's number needs, and a letter of a panel's title."""


def write(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write `tasks.png` for a study of dense attention alone that has more than one model or length of several tasks."""
    scored = scored_rows(rows)
    if not scored or not all(row.is_baseline for row in scored):
        return []
    columns = {(model_name(row), row.haystack, row.length) for row in scored if row.task == AVERAGE}
    if len(columns) < 2 or len({row.task for row in scored}) < 3:
        return []
    return [style.save(draw(scored), folder / "tasks.png", mark=ROWS)]


def draw(rows: Sequence[Row]) -> Figure:
    """Return the figure for rows of dense attention with an accuracy, single tasks and averages; rows that a gate holds back
    are left out. Where columns have other tasks, a column says how many."""
    sound = [row for row in rows if row.status == Status.OK]
    single = [row for row in sound if row.task != AVERAGE]
    tasks = [*sorted({row.task for row in single}), AVERAGE]
    averages = {row.group: row for row in sound if row.task == AVERAGE}
    columns = sorted(averages.values(), key=lambda row: (model_name(row), row.length, row.haystack))
    models: dict[str, list[Row]] = defaultdict(list)
    for row in columns:
        models[model_name(row)].append(row)
    counts_differ = len({row.tasks for row in columns}) > 1
    around = 2.6 + 0.4 * len(models)
    column = max(NARROW, min(0.62, (style.WIDEST_PAGE - around) / len(columns)))
    figure = style.new_figure(around + column * len(columns), 1.8 + 0.28 * len(tasks))
    with matplotlib.rc_context(style.HEATMAP_RC):
        grid = figure.add_gridspec(1, len(models), width_ratios=[len(members) for members in models.values()])
        for i, (model, members) in enumerate(models.items()):
            axes = figure.add_subplot(grid[0, i])
            groups = [row.group for row in members]
            table = np.full((len(tasks), len(groups)), np.nan)
            for row in sound:
                if row.group in groups:
                    table[tasks.index(row.task), groups.index(row.group)] = row.scored.percent
            heatmap.panel(axes, table, tasks, [_label(row, with_count=counts_differ) for row in members], label="tokens")
            axes.axhline(len(tasks) - 1.5, color="white", linewidth=2)
            axes.set_title(_wrapped(model, int(column * len(groups) / LETTER)), loc="left", fontsize=9, fontweight="bold")
            if i:
                axes.set_yticklabels([])
        style.set_title(figure, "Dense attention: accuracy by task (%)")
        style.set_small_print(figure, _note(columns, single))
    return figure


def _label(average: Row, *, with_count: bool) -> str:
    """Return what a column is called: its length, and how many tasks it has."""
    count = average.tasks or 0
    return style.tokens(average.length) + (f"\n{count} task{'s' if count > 1 else ''}" if with_count else "")


def _note(averages: Sequence[Row], single: Sequence[Row]) -> str:
    counts = count_range((row.samples for row in averages), " to ", ",")
    widest = 100 * max(row.scored.accuracy_high - row.scored.accuracy_low for row in single)
    device = ", ".join(sorted({row.device for row in averages}))
    return (
        f"{counts} samples a column; 95 % intervals of a task are up to {widest:.0f} points wide,\n"
        f"all of them in leaderboard.csv. Measured on {device}."
    )


def _wrapped(text: str, width: int) -> str:
    """Return a model's name in lines of about `width` characters, broken at its hyphens and spaces."""
    lines = [""]
    for part in text.replace("-", "-\0").replace(" ", " \0").split("\0"):
        if lines[-1] and len(lines[-1]) + len(part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)
