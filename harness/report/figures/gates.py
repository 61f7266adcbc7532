"""How the gates of a model learnt: loss and recall by step, and what they keep of the attention by layer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
from matplotlib.ticker import MaxNLocator

from harness.report.figures import heatmap, style
from harness.report.figures.looks import SERIES, series_looks

if TYPE_CHECKING:
    import pandas as pd

SMOOTHED = 12
"""Steps that a point of the curves is the mean of."""


def draw_gate_curves(steps: pd.DataFrame, recall: pd.DataFrame, title: str, path: Path) -> Path:
    """Draw the tables of ``job=distill`` (columns of distill.Step and gate_report.Recall) to `path`."""
    with matplotlib.rc_context(style.RC):
        figure = style.new_figure(style.WIDEST_PAGE, 3.6)
        left, middle, right = figure.subplots(1, 3)
        left.plot(steps["step"], steps["loss"].rolling(SMOOTHED, min_periods=1).mean(), color=SERIES[0].colour)
        left.set(xlabel="step", ylabel="KL to the true map (nats)", title="Loss")
        middle.plot(steps["step"], 100 * steps["recall"].rolling(SMOOTHED, min_periods=1).mean(), color=SERIES[1].colour)
        middle.set(xlabel="step", ylabel="recall at density 0.1 (%)", title="Blocks found", ylim=(0, 101))
        if len(recall):
            mean = recall.groupby(["density", "layer"])["kept_ratio"].mean().unstack("density")
            looks = series_looks(f"density {density:g}" for density in sorted(mean.columns, reverse=True))
            for density, (label, look) in zip(sorted(mean.columns, reverse=True), looks.items(), strict=True):
                right.plot(mean.index, 100 * mean[density], f"{look.marker}-", color=look.colour, label=label)
            right.legend(frameon=False, fontsize=8)
        right.set(xlabel="layer", ylabel="kept mass ÷ oracle's (%)", title="Attention kept, held-out text")
        for axes in (left, middle, right):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        style.set_title(figure, title)
        style.set_small_print(figure, f"Loss and blocks found: means of up to {SMOOTHED} steps, the last of them at its place.")
    return style.save(figure, path)


def draw_head_recall(heads: pd.DataFrame, title: str, path: Path) -> Path:
    """Draw recall of one density by layer and head (columns of recall_tables.by_head) as a heatmap to `path`."""
    table = heads.pivot(index="layer", columns="head", values="recall")
    figure = style.new_figure(2.2 + 0.36 * len(table.columns), 1.7 + 0.24 * len(table))
    with matplotlib.rc_context(style.HEATMAP_RC):
        axes = figure.subplots()
        mean = ("mean", [f"{100 * value:.0f}" for value in table.mean(axis=1)])
        names = [f"layer {layer}" for layer in table.index]
        heatmap.panel(axes, 100 * table.to_numpy(), names, [str(head) for head in table.columns], label="head", beside=[mean])
        style.set_title(figure, title)
        chance, tokens = 100 * heads["chance"].mean(), int(heads["tokens"].iloc[0])
        text = f"Per cent of the true map's best blocks, on {tokens:,} tokens of held-out text; chance: {chance:.0f} %."
        style.set_small_print(figure, text)
    return style.save(figure, path)
