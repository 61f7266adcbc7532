"""Accuracy by the tokens that gates were trained on, one picture a model, length, seed of the samples and sparsity."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes

from harness.report.figures import style
from harness.report.gate_curve import NAME, CurvePoint
from harness.report.lines import line_names
from harness.report.notes import count_range, left_out_text, off_density
from harness.report.rows import Row
from harness.study.columns import AVERAGE
from harness.study.matching import Match

Panel = tuple[str, str, int, int, float]
"""Model, device, length, seed of the samples and sparsity that was asked for, -1 for none: what one picture holds."""
NO_REQUEST = -1.0
"""The sparsity of a panel whose arms were asked for none."""


def write(points: Sequence[CurvePoint], rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write `gate_curve.png`, or a numbered picture for each of several panels. Nothing is written where no panel has trainings
    of different lengths at the sparsity that was asked for. Pictures that an earlier call left under such names go."""
    panels: dict[Panel, list[CurvePoint]] = defaultdict(list)
    left_out: dict[Panel, list[CurvePoint]] = defaultdict(list)
    for point in points:
        asked = NO_REQUEST if point.sparsity is None else point.sparsity
        points_of = left_out if point.match == Match.OFF_DENSITY else panels
        points_of[point.model, point.device, point.length, point.samples_seed, asked].append(point)
    shown = {panel: members for panel, members in panels.items() if len({point.tokens for point in members}) > 1}
    paths = []
    for number, (panel, members) in enumerate(sorted(shown.items())):
        name = "gate_curve.png" if len(shown) == 1 else f"gate_curve_{number}.png"
        paths.append(_draw(panel, members, _beside(panel, rows, members), left_out[panel], folder / name))
    style.remove_others(folder, re.compile(r"gate_curve(_\d+)?\.png"), paths)
    return paths


def _beside(panel: Panel, rows: Sequence[Row], points: Sequence[CurvePoint]) -> list[Row]:
    """Return the average rows of a panel that no training of the study made: dense attention, other methods, older weights."""
    names = {point.training for point in points}
    *shared, sparsity = panel
    return [
        row
        for row in rows
        if row.task == AVERAGE
        and row.score is not None
        and [row.model, row.device, row.length, row.seed] == shared
        and (row.is_baseline or sparsity == (NO_REQUEST if row.sparsity is None else row.sparsity))
        and not off_density(row)
        and row.knobs.get(NAME) not in names
    ]


def _draw(
    panel: Panel, points: Sequence[CurvePoint], beside: Sequence[Row], left_out: Sequence[CurvePoint], path: Path
) -> Path:
    model, device, length, seed, sparsity = panel
    recipes: dict[tuple[str, str, float], list[CurvePoint]] = defaultdict(list)
    texts: dict[str, set[str]] = defaultdict(set)
    for point in points:
        recipes[point.text, point.text_id, point.lr].append(point)
        texts[point.text].add(point.text_id)
    with matplotlib.rc_context(style.RC):
        figure = style.new_figure(7.8, 4.6)
        axes = figure.add_subplot()
        for number, ((text, text_id, lr), members) in enumerate(sorted(recipes.items())):
            name = f"{text} ({text_id[:6]})" if len(texts[text]) > 1 else text
            _draw_recipe(axes, members, style.PALETTE[number % len(style.PALETTE)], f"{name}, learning rate {lr:g}")
        lines = _lines_beside(beside, {point.method for point in points})
        for _, percent, colour in lines:
            axes.axhline(percent, color=colour, linewidth=1.2, linestyle=style.DENSE_DASH, zorder=1)
        axes.set_xscale("log")
        axes.set_xlabel("tokens that the gates were trained on (millions)")
        ticks = sorted({point.tokens for point in points})
        axes.set_xticks(ticks, [f"{tick / 1e6:.3g}" for tick in ticks])
        axes.minorticks_off()
        axes.set_ylabel("accuracy (%)")
        axes.set_ylim(bottom=max(0.0, axes.get_ylim()[0]))
        _write_names(axes, lines)
        axes.legend(frameon=False, fontsize=8.5, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2)
        asked = "" if sparsity == NO_REQUEST else f", density {1 - sparsity:.3g}"
        style.set_title(figure, f"{model}: accuracy by training of the gates, {style.tokens(length)} tokens{asked}")
        counts = count_range((point.samples for point in points), "–")
        style.set_small_print(
            figure,
            f"Mean over tasks, {counts} samples of seed {seed} a point. Bars: 95 % interval of an accuracy, wider than that of "
            f"a difference in pairs. Lines go through the means of seeds, which stand side by side. "
            f"{left_out_text(len(left_out), {f'gates {point.training}' for point in left_out})}Measured on {device}.",
        )
    return style.save(figure, path)


def _lines_beside(beside: Sequence[Row], trained: Collection[str]) -> list[tuple[str, float, str]]:
    """Return name, accuracy in per cent and colour of what is no training of the study. trained: methods of the trainings.
    Colours go by name, so that a method has one colour in the pictures of all models."""
    names = line_names(beside)
    lines = []
    for number, row in enumerate(sorted(beside, key=lambda row: (row.is_baseline, names[id(row)]))):
        colour = style.INK if row.is_baseline else style.PALETTE[-1 - number % len(style.PALETTE)]
        name = f"{names[id(row)]}, other weights" if row.method in trained else names[id(row)]
        lines.append((name, row.scored.percent, colour))
    return lines


def _write_names(axes: Axes, lines: Sequence[tuple[str, float, str]]) -> None:
    """Write the names of lines right of the panel, one below the other: within it they would lie on the last trainings."""
    low, high = axes.get_ylim()
    heights = style.spread([percent for _, percent, _ in lines], (high - low) * 0.045, low, high)
    for (name, _, colour), height in zip(lines, heights, strict=True):
        axes.annotate(name, (1.01, height), xycoords=("axes fraction", "data"), fontsize=8.5, color=colour, va="center")


def _draw_recipe(axes: Axes, points: Sequence[CurvePoint], colour: str, label: str) -> None:
    """Draw the points of one recipe, and a line through the means of those with as many tokens."""
    by_tokens: dict[int, list[float]] = defaultdict(list)
    for point in points:
        by_tokens[point.tokens].append(100 * point.accuracy)
    xs = sorted(by_tokens)
    axes.plot(xs, [sum(by_tokens[x]) / len(by_tokens[x]) for x in xs], color=colour, linewidth=1.6, label=label, zorder=3)
    seeds: dict[int, int] = defaultdict(int)
    for point in points:
        aside = 1 + 0.03 * seeds[point.tokens]  # so that the bars of several seeds are told apart
        seeds[point.tokens] += 1
        y, low, high = 100 * point.accuracy, 100 * point.accuracy_low, 100 * point.accuracy_high
        bars = [[max(0.0, y - low)], [max(0.0, high - y)]]
        axes.errorbar(
            [point.tokens * aside], [y], bars, fmt="o", color=colour, markersize=5, elinewidth=1, capsize=2, alpha=0.75
        )
