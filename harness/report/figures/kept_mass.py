"""The attention mass that methods keep, as a heatmap of methods by layers."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.report.figures import heatmap, style
from harness.report.figures.picture_rows import usual_sparsity
from harness.report.lines import rows_by_line
from harness.report.mass_rows import MassRow
from harness.report.notes import left_out_note, off_density
from harness.report.rows import Row
from harness.report.stale import KEPT_MASS, remove_stale

NAMES = 2.2
"""Inches of the names at the left."""
QUERY_BLOCKS = 16
"""Query blocks of a prompt that masses are measured on, at most: `attention_kernels.kept_mass.ROWS`, which takes torch to
import."""


def write(rows: Sequence[MassRow], folder: Path) -> list[Path]:
    """Write `kept_mass.png` (the sparsity that most methods have, the nearest to 0.9) and `kept_mass_native.png` (methods at
    their native knobs), as far as there are rows; one each per model and device, and for each set of prompts beside the one
    that most methods have. Pictures that an earlier call left under such names go."""
    sets: dict[tuple[str, str, str], list[MassRow]] = defaultdict(list)
    titles = _titles(rows)
    for mass in rows:
        sets[mass.row.model, mass.row.device, titles[id(mass)]].append(mass)
    paths, numbers = [], sorted({key[:2] for key in sets})
    for (model, device, prompts), members in sorted(sets.items()):
        number, words = numbers.index((model, device)), "-".join(re.findall(r"\w+", prompts))
        suffix = (f"_{number}" if number else "") + (f"_{words}" if words else "")
        usual = usual_sparsity(mass.row.sparsity for mass in members)
        for name, sparsity, at in (
            ("kept_mass", usual, f"at density {1 - usual:.3g}"),
            ("kept_mass_native", None, "at native defaults"),
        ):
            at_sparsity = [mass for mass in members if mass.row.sparsity == sparsity]
            if shown := [mass for mass in at_sparsity if not off_density(mass.row)]:
                left_out = [mass.row for mass in at_sparsity if off_density(mass.row)]
                figure = draw(shown, f"{model}: attention mass kept {at}{f', {prompts}' if prompts else ''}", device, left_out)
                paths.append(style.save(figure, folder / f"{name}{suffix}.png", mark=KEPT_MASS))
    remove_stale(folder, KEPT_MASS, paths)
    return paths


def _titles(rows: Sequence[MassRow]) -> dict[int, str]:
    """Return what the prompts of each row are called, by its id(): those that most rows of its model, device and length have
    nothing, others by how many they are."""
    seen: dict[tuple[str, str, int], Counter[tuple[int, str]]] = defaultdict(Counter)
    for mass in rows:
        seen[mass.row.model, mass.row.device, mass.row.length][mass.prompts, mass.seen] += 1
    titles: dict[int, str] = {}
    for mass in rows:
        counts = seen[mass.row.model, mass.row.device, mass.row.length]
        ordered = sorted(counts, key=lambda prompts: (-counts[prompts], -prompts[0], prompts[1]))
        place = ordered.index((mass.prompts, mass.seen))
        number = 1 + sum(count == mass.prompts for count, _ in ordered[1:place])
        text = f"{mass.prompts} prompt{'s' if mass.prompts > 1 else ''}" + (f" ({number})" if number > 1 else "")
        titles[id(mass)] = text if place else ""
    return titles


def draw(rows: Sequence[MassRow], title: str, device: str, left_out: Sequence[Row] = ()) -> Figure:
    """Return a figure with a panel per length; methods from top to bottom by the mass they keep, layers from left to right,
    then their mean and the density. left_out: rows off the density asked for, which are named below it."""
    lines = _by_line(rows, left_out)
    means = {name: fmean(mass.mean for mass in members) for name, members in lines.items()}
    names = sorted(lines, key=means.__getitem__, reverse=True)
    lengths = sorted({mass.row.length for mass in rows})
    layers = sorted({layer.layer for mass in rows for layer in mass.layers})
    panel, height = 1.3 + 0.34 * min(len(layers), 20), 0.9 + 0.3 * len(names)
    columns = heatmap.columns_of(len(lengths), panel, NAMES)
    rows_of_panels = -(-len(lengths) // columns)
    figure = style.new_figure(NAMES + columns * panel, 0.8 + height * rows_of_panels)
    with matplotlib.rc_context(style.HEATMAP_RC):
        for i, length in enumerate(lengths):
            axes = figure.add_subplot(rows_of_panels, columns, i + 1)
            at_length = {name: next((m for m in lines[name] if m.row.length == length), None) for name in names}
            _draw_panel(axes, at_length, layers)
            axes.set_title(f"{style.tokens(length)} tokens", loc="left", fontweight="bold")
            if i % columns:
                axes.set_yticklabels([])
        style.set_title(figure, title)
        fewest, most = min(mass.prompts for mass in rows), max(mass.prompts for mass in rows)
        prompts = "–".join(str(count) for count in sorted({fewest, most}))
        off = left_out_note(left_out, [mass.row for mass in rows])
        style.set_small_print(
            figure,
            f"{off}Per cent of the true attention of up to {QUERY_BLOCKS} query blocks, first and "
            f"last among them, mean over query heads and {prompts} prompts, prefilled densely. Measured on {device}.",
        )
    return figure


def _by_line(rows: Sequence[MassRow], left_out: Sequence[Row]) -> dict[str, list[MassRow]]:
    masses = {id(mass.row): mass for mass in rows}
    lines = rows_by_line([mass.row for mass in rows], along="length", beside=left_out)
    return {name: [masses[id(row)] for row in members] for name, members in lines.items()}


def _draw_panel(axes: Axes, rows: Mapping[str, MassRow | None], layers: Sequence[int]) -> None:
    table = np.full((len(rows), len(layers)), np.nan)
    for y, mass in enumerate(rows.values()):
        for layer in mass.layers if mass is not None else ():
            table[y, layers.index(layer.layer)] = 100 * layer.mean
    beside = [
        ("mean", ["" if mass is None else f"{100 * mass.mean:.0f}" for mass in rows.values()]),
        ("density", ["" if mass is None else _density(mass) for mass in rows.values()]),
    ]
    heatmap.panel(axes, table, list(rows), list(map(str, layers)), label="layer", beside=beside)


def _density(mass: MassRow) -> str:
    return f"{fmean(layer.density for layer in mass.layers):.2f}".lstrip("0")
