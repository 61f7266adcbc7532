"""The curve of a pretraining run: loss by step, and the share of answers right on unseen rows by kind and length."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib

from harness.report.figures.style import PALETTE, RC, figure, percent_axis, save, tokens


def training_curve(log: Path, path: Path) -> Path:
    """Draw `log` (train_log.jsonl of ``job=pretrain``) to `path`."""
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    steps = [r for r in rows if "loss" in r]
    probe = [r["probe"] for r in rows if "probe" in r][-1]
    with matplotlib.rc_context(RC):
        made = figure(10, 3.8)
        left, right = made.subplots(1, 2)
        left.plot(
            [r["step"] for r in steps],
            [r["loss"] for r in steps],
            color=PALETTE[0],
            label="weighted, all scored tokens",
        )
        left.plot(
            [r["step"] for r in steps],
            [max(r["answer_loss"], 1e-3) for r in steps],
            color=PALETTE[1],
            label="answer tokens",
        )
        left.set(yscale="log", xlabel="step", ylabel="loss (nats per token)", title="Training loss")
        left.legend(frameon=False)
        for n, (kind, by_length) in enumerate(sorted(probe.items())):
            lengths = [int(k) for k in by_length]
            right.plot(lengths, [100 * v for v in by_length.values()], "o-", color=PALETTE[n % len(PALETTE)], label=kind)
        right.set_xscale("log", base=2)
        right.set_xticks(lengths, [tokens(n) for n in lengths])
        right.set(xlabel="tokens", title="Whole answers right at the end, unseen rows")
        percent_axis(right)
        right.legend(frameon=False, ncols=2)
    return save(made, path)
