"""Every line's difference to one of them with its interval: one picture a model and length, a column for each sparsity."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.report.compare import LeftOut, LinePair, by_panel
from harness.report.figures import style
from harness.report.figures.looks import GATED_SIGN, INK, SOLID, LineLook, Look, looks_of
from harness.report.figures.signs import draw_point
from harness.report.notes import count_range, left_out_text
from harness.report.row_texts import question_title
from harness.report.stale import COMPARED, remove_stale
from harness.study.schema import Status

SIGNIFICANT = 0.05
"""A difference with a p-value (after Holm) below this has a thick bar."""
THICK, THIN = 3.6, 1.0
"""Points that bars are wide."""
COLUMNS, PANEL = 4, 2.2
"""Panels beside each other, and inches of one's width, at most."""


def write(pairs: Sequence[LinePair], folder: Path, name: str, left_out: Sequence[LeftOut] = ()) -> list[Path]:
    """Write `compare_NAME.png`, or `compare_NAME_1.png` and so on for each of several, in the order of the pairs. left_out:
    averages off the densities asked for, which the pictures of their model and length count. Pictures that an earlier call left
    under these names go."""
    panels = by_panel(pairs)
    paths = []
    for number, members in enumerate(panels.values()):
        end = f"_{number + 1}" if len(panels) > 1 else ""
        off = [average for average in left_out if average.panel == members[0].panel]
        path = folder / f"compare_{name}{end}.png"
        paths.append(style.save(_draw(members, off), path, mark=f"{COMPARED} {name}"))
    remove_stale(folder, f"{COMPARED} {name}", paths, re.compile(rf"compare_{re.escape(name)}(_\d+)?\.png"))
    return paths


def _draw(pairs: Sequence[LinePair], left_out: Sequence[LeftOut]) -> Figure:
    """Return the figure of the pairs of one panel, lines by their mean difference; left_out: rows of it that are in no pair."""
    first = pairs[0]
    sparsities = sorted({pair.sparsity for pair in pairs})
    differences: dict[str, list[float]] = defaultdict(list)
    for pair in pairs:
        differences[pair.line].append(pair.difference)
    lines = sorted(differences, key=lambda line: sum(differences[line]) / len(differences[line]))
    looks = looks_of(map(_method, pairs))
    rows = -(-len(sparsities) // COLUMNS)
    columns = -(-len(sparsities) // rows)
    names = min(4.0, 0.4 + style.NAME_LETTER * max(map(len, lines)))
    figure = style.new_figure(
        names + min(PANEL, (style.WIDEST_PAGE - names) / columns) * columns, 1.5 + rows * (0.7 + 0.26 * len(lines))
    )
    with matplotlib.rc_context(style.RC):
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for axes in grid.flat[len(sparsities) :]:
            axes.set_visible(False)
        for axes, sparsity in zip(grid.flat, sparsities, strict=False):
            members = [pair for pair in pairs if pair.sparsity == sparsity]
            axes.axvline(0, color=INK, linewidth=1)
            for pair in members:
                _draw_pair(axes, pair, lines.index(pair.line), looks[_method(pair)])
            most_samples = max(members, key=lambda pair: pair.samples)
            axes.set_title(f"density {1 - sparsity:.3g} ({100 * most_samples.beside_accuracy:.0f} %)", loc="left")
            axes.tick_params(labelbottom=True)
        grid[0][0].set_yticks(range(len(lines)), lines)
        prompts = f", {first.prompt_set}" if first.prompt_set else ""
        where = f"{first.model}{question_title(first.question)}{prompts} at {style.tokens(first.length)}"
        style.set_title(figure, f"{where}: accuracy beside {first.beside}")
        counts = count_range((pair.samples for pair in pairs), " to ")
        interpolated = sorted({pair.line for pair in pairs if pair.interpolated in ("line", "both")})
        interpolated += sorted({pair.beside for pair in pairs if pair.interpolated in ("beside", "both")})
        off = left_out_text(len(left_out), {average.line for average in left_out})
        between = f"Interpolated between two whole knobs: {', '.join(interpolated)}. " if interpolated else ""
        crossed = f"{GATED_SIGN}. " if any(pair.status == Status.GATED for pair in pairs) else ""
        style.set_small_print(
            figure,
            f"Points of accuracy above (right) or below {first.beside} at the same density{density_note(pairs)}; in brackets "
            f"its accuracy, on the most samples; bars: 95 % interval, {counts} prompts in pairs. "
            f"Thick: p < {SIGNIFICANT:g} after Holm. {crossed}{between}{off}Measured on {first.device}.",
        )
    return figure


def _method(pair: LinePair) -> str:
    """Return whose colour a line has: its method, or the one that decodes after a dense prefill, which has no density."""
    name, _, texts = pair.line.partition(" (")
    return texts.partition(",")[0].removesuffix(")") if pair.density is None and texts else name


def density_note(pairs: Sequence[LinePair]) -> str:
    """Return how near densities are, and of what, where some lines decode sparsely: as many of their keys as they like."""
    decoded = [pair for pair in pairs if pair.decode_density is not None or pair.beside_decode_density is not None]
    return " of prefill, within 2 % (those of decoding are not matched)" if decoded else ", within 2 %"


def _draw_pair(axes: Axes, pair: LinePair, height: int, look: Look) -> None:
    """Draw a difference and its interval, thick where the two are told apart."""
    low, middle, high = (100 * value for value in (pair.difference_low, pair.difference, pair.difference_high))
    axes.plot([low, high], [height, height], color=look.colour, linewidth=THICK if pair.p_holm < SIGNIFICANT else THIN)
    draw_point(axes, (middle, height), LineLook(*look, SOLID), crossed=pair.status == Status.GATED)
