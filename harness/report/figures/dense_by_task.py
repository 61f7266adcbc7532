"""Dense attention by task and length, a panel per model and way of asking: what a model does before anything is taken away."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from harness.report.figures import heatmap, style
from harness.report.leaderboard import is_baseline_row
from harness.study.schema import AVERAGE, PERPLEXITY, Status

Row = style.Row


def write(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write `tasks.png` for a study of dense attention alone that has more than one model or length of several tasks."""
    scored = [r for r in rows if r["task"] not in ("", PERPLEXITY) and r["accuracy"] is not None]
    if not scored or not all(map(is_baseline_row, scored)):
        return []
    columns = {(style.model_of(r), r["haystack"], r["length"]) for r in scored if r["task"] == AVERAGE}
    if len(columns) < 2 or len({r["task"] for r in scored}) < 3:
        return []
    return [style.save(draw(scored), folder / "tasks.png")]


def draw(rows: Sequence[Row]) -> Figure:
    """The figure for rows of dense attention with an accuracy, single tasks and averages; rows that a gate holds back are left
    out. Where columns have other tasks, a column says how many."""
    sound = [r for r in rows if r["status"] == Status.OK]
    tasks = [*sorted({r["task"] for r in sound} - {AVERAGE}), AVERAGE]
    averages = {r["_group"]: r for r in sound if r["task"] == AVERAGE}
    order = sorted(averages.values(), key=lambda r: (style.model_of(r), r["length"], r["haystack"]))
    models: dict[str, list[str]] = defaultdict(list)
    for row in order:
        models[style.model_of(row)].append(row["_group"])
    alike = len({r["tasks"] for r in order}) == 1
    made = style.figure(2.6 + 0.62 * len(order) + 0.5 * len(models), 1.8 + 0.28 * len(tasks))
    with matplotlib.rc_context(style.RC | {"axes.grid": False}):
        grid = made.add_gridspec(1, len(models), width_ratios=[len(groups) for groups in models.values()])
        for i, (model, groups) in enumerate(models.items()):
            axes = made.add_subplot(grid[0, i])
            table = np.full((len(tasks), len(groups)), np.nan)
            for row in sound:
                if row["_group"] in groups:
                    table[tasks.index(row["task"]), groups.index(row["_group"])] = 100 * row["accuracy"]
            heatmap.panel(axes, table, tasks, [_label(averages[g], alike) for g in groups], label="tokens")
            axes.axhline(len(tasks) - 1.5, color="white", linewidth=2)
            axes.set_title(_wrapped(model, 9 * len(groups)), loc="left", fontsize=9, fontweight="bold")
            if i:
                axes.set_yticklabels([])
        style.title(made, "Dense attention: accuracy by task (%)")
        style.foot(made, _note(order, [r for r in sound if r["task"] != AVERAGE]))
    return made


def _label(average: Row, alike: bool) -> str:
    """What a column is called."""
    count = average["tasks"]
    return style.tokens(average["length"]) + ("" if alike else f"\n{count} task{'s' if count > 1 else ''}")


def _note(averages: Sequence[Row], single: Sequence[Row]) -> str:
    counts = sorted({int(r["samples"]) for r in averages})
    each = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
    widest = 100 * max(r["accuracy_high"] - r["accuracy_low"] for r in single)
    device = ", ".join(sorted({str(r["device"]) for r in averages}))
    return (
        f"{each} samples a column; 95 % intervals of a task are up to {widest:.0f} points wide,\n"
        f"all of them in leaderboard.csv. Measured on {device}."
    )


def _wrapped(text: str, width: int) -> str:
    """A model's name in lines of about `width` characters, broken at its hyphens and spaces."""
    lines = [""]
    for part in text.replace("-", "-\0").replace(" ", " \0").split("\0"):
        if lines[-1] and len(lines[-1]) + len(part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)
