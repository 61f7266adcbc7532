"""Accuracy by the tokens that gates were trained on, one picture a model, length, seed of the samples and sparsity."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from harness.report.figures import labels, style
from harness.report.figures.few import MOST, best_few
from harness.report.figures.looks import BOUND_DASH, DENSE_DASH, LineLook, Look, line_looks, series_looks
from harness.report.figures.signs import PALE, draw_bars, pale_note, signs_note
from harness.report.front import is_bound_row
from harness.report.gate_curve import NAME, CurvePoint
from harness.report.lines import line_names
from harness.report.notes import count_range, left_out_text, off_density
from harness.report.rows import Row
from harness.report.stale import GATE_CURVE, remove_stale
from harness.study.columns import AVERAGE
from harness.study.matching import Match

Panel = tuple[str, str, int, int, float]
"""Model, device, length, seed of the samples and sparsity that was asked for, -1 for none: what one picture holds."""
WIDTH = 8.6
"""Inches of the picture."""
MOST_BESIDE = 5
"""Lines at most of what no training of the study made; of a picture's lines the others are trainings."""
AT_END = 1.06
"""How many times as far as the last training the names of other lines are led from: seeds stand up to there."""
NO_REQUEST = -1.0
"""The sparsity of a panel whose arms were asked for none."""


@dataclass(frozen=True)
class LineBeside:
    """A level line of what no training of the study made: its name, accuracy in per cent and look."""

    name: str
    percent: float
    look: LineLook


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
    remove_stale(folder, GATE_CURVE, paths)
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
    names = {
        (text, text_id, lr): f"{text}{f' ({text_id[:6]})' if len(texts[text]) > 1 else ''}, learning rate {lr:g}"
        for text, text_id, lr in sorted(recipes)
    }
    beside_lines = _lines_beside(beside, {point.method for point in points})
    references = (DENSE_DASH, BOUND_DASH)
    lines = best_few(beside_lines, lambda line: (line.look.dash not in references, -line.percent), MOST_BESIDE)
    unseen = sorted(line.name for line in beside_lines if line not in lines)
    coloured = best_few(names, lambda recipe: -max(point.accuracy for point in recipes[recipe]), MOST - len(lines))
    looks = dict(zip(names, series_looks(names.values()).values(), strict=True))
    lines = _lines_beside(beside, {point.method for point in points})
    height = max(4.6, labels.names_height([line.name for line in lines]) + 2.0)
    figure = style.new_figure(WIDTH, height)
    with matplotlib.rc_context(style.RC):
        axes = figure.add_subplot()
        for recipe in names:
            _draw_recipe(axes, recipes[recipe], looks[recipe] if recipe in coloured else Look(PALE, "."), names[recipe])
        axes.set_xscale("log")
        axes.set_xlabel(f"tokens that the gates were trained on (millions), {style.LOG}")
        ticks = sorted({point.tokens for point in points})
        axes.set_xticks(ticks, [f"{tick / 1e6:.3g}" for tick in ticks])
        axes.minorticks_off()
        ends = [end for point in points for end in (100 * point.accuracy_low, 100 * point.accuracy_high)]
        style.percent_axis(axes, [*ends, *(line.percent for line in lines)])
        start, end = ticks[0] / AT_END, ticks[-1] * AT_END
        for line in lines:
            level = [line.percent] * 2
            axes.plot([start, end], level, color=line.look.colour, linewidth=1.2, linestyle=line.look.dash, zorder=1)
        named = [labels.End(line.name, end, line.percent, line.look.colour, line.look.marker) for line in lines]
        labels.write_names(axes, named, (WIDTH - 0.8, height - 2.0), (start, end))
        handles = [
            Line2D([], [], color=looks[recipe].colour, marker=looks[recipe].marker, linewidth=1.6, label=names[recipe])
            for recipe in coloured
        ]
        asked = "" if sparsity == NO_REQUEST else f", density {1 - sparsity:.3g}"
        style.set_title(figure, f"{model}: accuracy by training of the gates, {style.tokens(length)} tokens{asked}")
        signs = pale_note((names[recipe] for recipe in names if recipe not in coloured), "accuracy")
        signs += signs_note(beside, dashed=any(row.is_baseline for row in beside))
        signs += f"Beside, without a line, as less accurate: {', '.join(unseen)}. " if unseen else ""
        counts = count_range((point.samples for point in points), "–")
        style.set_small_print(
            figure,
            f"Mean over tasks, {counts} samples of seed {seed} a point. Bars: 95 % interval of an accuracy, wider than that of "
            f"a difference in pairs; the lines beside have none. Lines go through the means of seeds, side by side. "
            f"Muted colours are trainings, no methods. {signs}"
            f"{left_out_text(len(left_out), {f'gates {point.training}' for point in left_out})}Measured on {device}.",
        )
        style.add_legend(figure, handles)
    return style.save(figure, path, mark=GATE_CURVE)


def _lines_beside(beside: Sequence[Row], trained: Collection[str]) -> list[LineBeside]:
    """Return the lines of what is no training of the study, in the looks of their methods. trained: methods of the
    trainings."""
    names = line_names(beside)
    rows = sorted(beside, key=lambda row: (row.is_baseline, names[id(row)]))
    titles = [f"{names[id(row)]}{', other weights' if row.method in trained else ''}" for row in rows]
    methods = {title: row.method for title, row in zip(titles, rows, strict=True)}
    bounds = [title for title, row in zip(titles, rows, strict=True) if is_bound_row(row)]
    dense = [title for title, row in zip(titles, rows, strict=True) if row.is_baseline]
    looks = line_looks(methods, bounds=bounds, dense=dense)
    return [LineBeside(title, row.scored.percent, looks[title]) for title, row in zip(titles, rows, strict=True)]


def _draw_recipe(axes: Axes, points: Sequence[CurvePoint], look: Look, label: str) -> None:
    """Draw the points of one recipe, and a line through the means of those with as many tokens."""
    by_tokens: dict[int, list[float]] = defaultdict(list)
    for point in points:
        by_tokens[point.tokens].append(100 * point.accuracy)
    xs = sorted(by_tokens)
    axes.plot(xs, [sum(by_tokens[x]) / len(by_tokens[x]) for x in xs], color=look.colour, linewidth=1.6, label=label, zorder=3)
    seeds: dict[int, int] = defaultdict(int)
    for point in points:
        aside = 1 + 0.03 * seeds[point.tokens]  # so that the bars of several seeds are told apart
        seeds[point.tokens] += 1
        y, low, high = 100 * point.accuracy, 100 * point.accuracy_low, 100 * point.accuracy_high
        draw_bars(axes, [(point.tokens * aside, y)], [(low, high)], look.colour)
        axes.plot(point.tokens * aside, y, look.marker, color=look.colour, markersize=5, alpha=0.75, zorder=4)
