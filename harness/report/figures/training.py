"""The curve of a pretraining run: loss by step, and the share of answers right on unseen rows by kind and length."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib

from harness.report.figures import style
from harness.report.figures.looks import SERIES, series_looks

LOWEST = 1e-3
"""Loss below which the curve of answer tokens is drawn at this: its axis is logarithmic."""


def draw_training_curve(log: Path, path: Path) -> Path:
    """Draw `log` (train_log.jsonl of ``job=pretrain``) to `path`."""
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    losses = [row for row in rows if "loss" in row]
    probe = [row["probe"] for row in rows if "probe" in row][-1]
    with matplotlib.rc_context(style.RC):
        figure = style.new_figure(10, 3.8)
        left, right = figure.subplots(1, 2)
        steps = [row["step"] for row in losses]
        left.plot(steps, [row["loss"] for row in losses], color=SERIES[0].colour, label="weighted, all scored tokens")
        answers = [max(row["answer_loss"], LOWEST) for row in losses]
        left.plot(steps, answers, color=SERIES[1].colour, label="answer tokens")
        left.set(yscale="log", xlabel="step", ylabel=f"loss (nats per token), {style.LOG}", title="Training loss")
        left.legend(frameon=False)
        looks = series_looks(sorted(probe))
        for kind, by_length in sorted(probe.items()):
            lengths = [int(length) for length in by_length]
            shares = [100 * share for share in by_length.values()]
            right.plot(lengths, shares, f"{looks[kind].marker}-", color=looks[kind].colour, label=kind)
        style.length_axis(right, lengths)
        right.set(title="Whole answers right at the end, unseen rows")
        style.percent_axis(right)
        right.legend(frameon=False, ncols=2)
    return style.save(figure, path)
