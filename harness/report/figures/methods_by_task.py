"""Accuracy by task and method at one sparsity: which tasks an average loses its points on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from harness.report import variants
from harness.report.figures import heatmap, style
from harness.report.leaderboard import is_baseline_row
from harness.study.schema import AVERAGE, PERPLEXITY, Status

Row = style.Row


def write(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write `by_task.png` for methods at one length and sparsity on three tasks or more, one per model and device."""
    scored = [r for r in rows if r["task"] not in ("", PERPLEXITY) and r["accuracy"] is not None]
    paths: list[Path] = []
    for (model, device), averages in sorted(style.by_model(scored).items()):
        arms = {r["_group"] for r in averages}
        members = [r for r in scored if r["_group"] in arms]
        sparse = [r for r in members if not is_baseline_row(r)]
        places = {(r["length"], r["sparsity"]) for r in sparse}
        tasks = {r["task"] for r in sparse} - {AVERAGE}
        if len(places) != 1 or len(tasks) < 3 or len(variants.lines(sparse)) < 2:
            continue
        suffix = f"_{len(paths)}" if paths else ""
        paths.append(style.save(draw(members, model, device), folder / f"by_task{suffix}.png"))
    for old in folder.glob("by_task*.png"):  # of when the study had one sparsity
        if old not in paths:
            old.unlink()
    return paths


def draw(rows: Sequence[Row], model: str, device: str) -> Figure:
    """The figure for rows of one model and device, single tasks and averages: dense first, the methods by their average."""
    sparse = [r for r in rows if not is_baseline_row(r)]
    length, sparsity = sparse[0]["length"], sparse[0]["sparsity"]
    tasks = [*sorted({r["task"] for r in sparse} - {AVERAGE}), AVERAGE]
    lines = variants.lines(sparse)
    dense = [r for r in rows if is_baseline_row(r) and r["length"] == length and r["task"] in tasks]
    means = {name: max((r["accuracy"] for r in part if r["task"] == AVERAGE), default=0.0) for name, part in lines.items()}
    order = sorted(lines, key=means.__getitem__, reverse=True)
    columns = {str(dense[0]["method"]): dense, **{name: lines[name] for name in order}} if dense else lines
    table = np.full((len(tasks), len(columns)), np.nan)
    held = np.zeros(table.shape, dtype=bool)
    for x, part in enumerate(columns.values()):
        for row in part:
            y = tasks.index(row["task"])
            table[y, x], held[y, x] = 100 * row["accuracy"], row["status"] == Status.GATED
    made = style.figure(3.4 + 0.5 * len(columns), 2.6 + 0.28 * len(tasks))
    with matplotlib.rc_context(style.RC | {"axes.grid": False}):
        axes = made.add_subplot()
        heatmap.panel(axes, table, tasks, list(columns), label="", held=held)
        axes.tick_params(axis="x", labelrotation=40)
        for text in axes.get_xticklabels():
            text.set_horizontalalignment("right")
        axes.axhline(len(tasks) - 1.5, color="white", linewidth=2)
        at = "at their own defaults" if sparsity is None else f"at sparsity {sparsity:g}"
        style.title(made, f"{model} at {style.tokens(length)} tokens, methods {at}: accuracy by task (%)")
        single = [r for r in sparse if r["task"] != AVERAGE]
        counts = sorted({int(r["samples"]) for r in single})
        each = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        widest = 100 * max(r["accuracy_high"] - r["accuracy_low"] for r in single)
        style.foot(
            made,
            f"{each} samples a task; 95 % intervals of a task are up to {widest:.0f} points wide, all of them in "
            f"leaderboard.csv. Measured on {device}.",
        )
    return made
