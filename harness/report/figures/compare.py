"""Every line's difference to one of them with its interval: one picture a model and length, a column for each sparsity."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

from harness.report.compare import PANEL
from harness.report.figures import style
from harness.study.schema import Status

SEEN = 0.05
"""A difference with a p-value (after Holm) below this is filled."""


def write(rows: Sequence[style.Row], folder: Path, name: str) -> list[Path]:
    """Write `compare_NAME.png`, or `compare_NAME_1.png` and so on for each of several, in the order of the rows. Pictures that
    an earlier call left under these names go."""
    panels: dict[tuple[Any, ...], list[style.Row]] = defaultdict(list)
    for row in rows:
        panels[tuple(row[column] for column in PANEL)].append(row)
    paths = []
    for number, (key, members) in enumerate(panels.items()):
        end = f"_{number + 1}" if len(panels) > 1 else ""
        paths.append(_draw(key, members, folder / f"compare_{name}{end}.png"))
    for old in (folder / f"compare_{name}.png", *folder.glob(f"compare_{name}_[0-9]*.png")):
        if old not in paths:
            old.unlink(missing_ok=True)
    return paths


def _draw(key: tuple[Any, ...], rows: Sequence[style.Row], path: Path) -> Path:
    model, device, length, question = key
    sparsities = sorted({row["sparsity"] for row in rows})
    best: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        best[row["line"]].append(row["difference"])
    order = sorted(best, key=lambda line: sum(best[line]) / len(best[line]))
    made = style.figure(2.2 + 2.3 * len(sparsities), 1.7 + 0.28 * len(order))
    with matplotlib.rc_context(style.RC):
        columns = made.subplots(1, len(sparsities), sharex=True, sharey=True, squeeze=False)[0]
        for axes, sparsity in zip(columns, sparsities, strict=True):
            axes.axvline(0, color=style.INK, linewidth=1)
            for row in rows:
                if row["sparsity"] == sparsity:
                    _point(axes, row, order.index(row["line"]))
            beside = max((row for row in rows if row["sparsity"] == sparsity), key=lambda row: row["samples"])
            axes.set_title(f"sparsity {sparsity:g} ({100 * beside['beside_accuracy']:.0f} %)", loc="left")
        columns[0].set_yticks(range(len(order)), order)
        asked = {"model": model, "question": question}
        style.title(made, f"{style.model_of(asked)} at {style.tokens(length)}: accuracy beside {rows[0]['beside']}")
        counts = sorted({row["samples"] for row in rows})
        each = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        style.foot(
            made,
            f"Points of accuracy above (right) or below {rows[0]['beside']} at the same sparsity; in brackets its accuracy, "
            f"on the most samples; bars: 95 % interval, {each} samples in pairs. Filled: p < {SEEN:g} after Holm. "
            f"Measured on {device}.",
        )
    return style.save(made, path)


def _point(axes: Any, row: style.Row, height: int) -> None:
    low, middle, high = (100 * row[c] for c in ("difference_low", "difference", "difference_high"))
    colour = style.GREY if row["status"] == Status.GATED else style.PALETTE[0] if middle >= 0 else style.PALETTE[1]
    filled = colour if row["p_holm"] < SEEN else "white"
    axes.plot([low, high], [height, height], color=colour, linewidth=1.6)
    axes.plot([middle], [height], marker="o", markersize=5.5, color=colour, markerfacecolor=filled)
