"""The curve of a pretraining run: loss by step, and the share of answers right on unseen rows by kind and length."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib

from harness.report.figures import style
from harness.report.figures.style import PALETTE

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
        left.plot(steps, [row["loss"] for row in losses], color=PALETTE[0], label="weighted, all scored tokens")
        answers = [max(row["answer_loss"], LOWEST) for row in losses]
        left.plot(steps, answers, color=PALETTE[1], label="answer tokens")
        left.set(yscale="log", xlabel="step", ylabel="loss (nats per token)", title="Training loss")
        left.legend(frameon=False)
        for n, (kind, by_length) in enumerate(sorted(probe.items())):
            lengths = [int(length) for length in by_length]
            shares = [100 * share for share in by_length.values()]
            right.plot(lengths, shares, "o-", color=PALETTE[n % len(PALETTE)], label=kind)
        right.set_xscale("log", base=2)
        right.set_xticks(lengths, [style.tokens(length) for length in lengths])
        right.set(xlabel="tokens", title="Whole answers right at the end, unseen rows")
        style.percent_axis(right)
        right.legend(frameon=False, ncols=2)
    return style.save(figure, path)
