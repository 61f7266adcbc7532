"""Every line's difference to one of them with its interval: one picture a model and length, a column for each sparsity."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes

from harness.report.compare import LeftOut, LinePair, by_panel
from harness.report.figures import style
from harness.report.notes import count_range, left_out_text
from harness.report.row_texts import question_title
from harness.study.schema import Status

SIGNIFICANT = 0.05
"""A difference with a p-value (after Holm) below this is filled."""


def write(pairs: Sequence[LinePair], folder: Path, name: str, left_out: Sequence[LeftOut] = ()) -> list[Path]:
    """Write `compare_NAME.png`, or `compare_NAME_1.png` and so on for each of several, in the order of the pairs. left_out:
    averages off the densities asked for, which the pictures of their model and length count. Pictures that an earlier call left
    under these names go."""
    panels = by_panel(pairs)
    paths = []
    for number, members in enumerate(panels.values()):
        end = f"_{number + 1}" if len(panels) > 1 else ""
        off = [average for average in left_out if average.panel == members[0].panel]
        paths.append(_draw(members, off, folder / f"compare_{name}{end}.png"))
    for old in (folder / f"compare_{name}.png", *folder.glob(f"compare_{name}_[0-9]*.png")):
        if old not in paths:
            old.unlink(missing_ok=True)
    return paths


def _draw(pairs: Sequence[LinePair], left_out: Sequence[LeftOut], path: Path) -> Path:
    """Draw the pairs of one panel, lines by their mean difference; left_out: rows of it that are in no pair."""
    first = pairs[0]
    sparsities = sorted({pair.sparsity for pair in pairs})
    differences: dict[str, list[float]] = defaultdict(list)
    for pair in pairs:
        differences[pair.line].append(pair.difference)
    lines = sorted(differences, key=lambda line: sum(differences[line]) / len(differences[line]))
    figure = style.new_figure(2.2 + 2.3 * len(sparsities), 1.7 + 0.28 * len(lines))
    with matplotlib.rc_context(style.RC):
        columns = figure.subplots(1, len(sparsities), sharex=True, sharey=True, squeeze=False)[0]
        for axes, sparsity in zip(columns, sparsities, strict=True):
            members = [pair for pair in pairs if pair.sparsity == sparsity]
            axes.axvline(0, color=style.INK, linewidth=1)
            for pair in members:
                _draw_point(axes, pair, lines.index(pair.line))
            most_samples = max(members, key=lambda pair: pair.samples)
            axes.set_title(f"density {1 - sparsity:.3g} ({100 * most_samples.beside_accuracy:.0f} %)", loc="left")
        columns[0].set_yticks(range(len(lines)), lines)
        prompts = f", {first.prompt_set}" if first.prompt_set else ""
        where = f"{first.model}{question_title(first.question)}{prompts} at {style.tokens(first.length)}"
        style.set_title(figure, f"{where}: accuracy beside {first.beside}")
        counts = count_range((pair.samples for pair in pairs), " to ")
        interpolated = sorted({pair.line for pair in pairs if pair.interpolated in ("line", "both")})
        interpolated += sorted({pair.beside for pair in pairs if pair.interpolated in ("beside", "both")})
        off = left_out_text(len(left_out), {average.line for average in left_out})
        between = f"Interpolated between two whole knobs: {', '.join(interpolated)}. " if interpolated else ""
        style.set_small_print(
            figure,
            f"Points of accuracy above (right) or below {first.beside} at the same density{density_note(pairs)}; in brackets "
            f"its accuracy, on the most samples; bars: 95 % interval, {counts} prompts in pairs. "
            f"Filled: p < {SIGNIFICANT:g} after Holm. {between}{off}Measured on {first.device}.",
        )
    return style.save(figure, path)


def density_note(pairs: Sequence[LinePair]) -> str:
    """Return how near densities are, and of what, where some lines decode sparsely: as many of their keys as they like."""
    decoded = [pair for pair in pairs if pair.decode_density is not None or pair.beside_decode_density is not None]
    return " of prefill, within 2 % (those of decoding are not matched)" if decoded else ", within 2 %"


def _draw_point(axes: Axes, pair: LinePair, height: int) -> None:
    low, middle, high = (100 * value for value in (pair.difference_low, pair.difference, pair.difference_high))
    colour = style.GREY if pair.status == Status.GATED else style.PALETTE[0] if middle >= 0 else style.PALETTE[1]
    face = colour if pair.p_holm < SIGNIFICANT else "white"
    axes.plot([low, high], [height, height], color=colour, linewidth=1.6)
    axes.plot([middle], [height], marker="o", markersize=5.5, color=colour, markerfacecolor=face)
