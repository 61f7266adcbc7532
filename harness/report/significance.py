"""What the rows of a study may claim together: p-values after Holm, non-inferiority at the margin, and an oracle that falls."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import methods
from harness.report.knobs import is_number, pairs
from harness.stats import paired
from harness.stats.scores import average_p, holm
from harness.study.schema import AVERAGE, PERPLEXITY, Status

Row = dict[str, Any]
Scores = dict[tuple[str, int], float]
"""The scores of an arm by task and sample."""
MARGIN = 0.02
"""Accuracy that a method may lose and still be called near-lossless, where the settings don't say."""
COMPARED = ("dense_accuracy", "p_value", "p_holm", "difference", "difference_low", "difference_high", "margin", "noninferior")
"""Columns that compare a row with dense."""
LINE = ("model", "method", "length", "seed", "dtype", "block_size", "device", "decode", "haystack", "question")
"""Columns in which rows of an oracle agree, beside its rule, where they differ in density alone."""
RISES = 0.01
"""An oracle that is better with fewer blocks, with a p-value below this, is gated."""


def judge(table: Sequence[Row], margin: float) -> None:
    """Fill in `p_holm` and, of accuracies, `margin` and `noninferior`. A family is what a reader looks at together: the
    averages of one model and length over all methods and sparsities, its rows of single tasks, or those of perplexity; where
    the question came after the context, a family of their own."""
    families: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in table:
        if row["p_value"] is not None:
            kind = row["task"] if row["task"] in (AVERAGE, PERPLEXITY) else "tasks"
            families[row["model"], row["length"], row["question"], kind].append(row)
    for family in families.values():
        for row, p in zip(family, holm([r["p_value"] for r in family]), strict=True):
            row["p_holm"] = p
            if row["difference_low"] is not None:
                row["margin"] = margin
                row["noninferior"] = "yes" if paired.noninferior(row["difference_low"], margin) else "no"


def is_bound(method: str) -> bool:
    """Whether a method is the bound that others are measured against; a name of nobody's here is not."""
    return method in methods.names() and methods.get(method).bound


def gate_rising(averages: Sequence[tuple[Row, Scores]]) -> None:
    """Gate the average rows of a bound (the oracle) that rise as blocks are left out: with fewer of the best blocks it can only
    get worse, so beyond noise it is the kernel, the density or the data that is wrong. In place."""
    lines: dict[tuple[Any, ...], list[tuple[Row, Scores]]] = defaultdict(list)
    for row, scores in averages:
        if row["accuracy"] is not None and row["density"] is not None and is_bound(row["method"]):
            lines[(_rule(row["knob"]), *(row[column] for column in LINE))].append((row, scores))
    for members in lines.values():
        members.sort(key=lambda pair: -pair[0]["density"])
        for i, (row, scores) in enumerate(members):
            for denser, theirs in members[:i]:
                if reason := _rises(row, scores, denser, theirs):
                    row["status"], row["reason"] = Status.GATED, reason
                    break


def _rule(knobs: str | None) -> tuple[str, ...]:
    """The knobs that aren't numbers: a number goes with the density, as a threshold found for each does."""
    return tuple(f"{name}={value}" for name, value in pairs(knobs).items() if not is_number(value))


def _rises(row: Row, scores: Scores, denser: Row, theirs: Scores) -> str | None:
    both = scores.keys() & theirs.keys()
    tasks = sorted({task for task, _ in both})
    if not both or not row["density"] < denser["density"] - 0.005:
        return None
    pairs = [[(scores[key], theirs[key]) for key in sorted(both) if key[0] == task] for task in tasks]
    mine, other = ([[pair[i] for pair in task] for task in pairs] for i in (0, 1))
    if paired.mean_difference(mine, other) <= 0:
        return None
    p = average_p(mine, other, seed=row["seed"])
    if p >= RISES:
        return None
    densities = f"density {row['density']:.3f} than at {denser['density']:.3f}"
    return f"{row['method']} is better at {densities}, by more than noise (p={p:.2g}): suspected bug"


def scores_of(samples: Mapping[str, Sequence[Mapping[str, Any]]], cells: Sequence[Mapping[str, Any]]) -> Scores:
    """The scores of some cells by task and sample."""
    return {(c["identity"]["task"], s["index"]): s["score"] for c in cells for s in samples.get(c["cell"], [])}
