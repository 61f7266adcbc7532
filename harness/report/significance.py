"""What the rows of a study may claim together: p-values after Holm, non-inferiority at the margin, and an oracle that falls."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from harness.core.method_facts import method_facts
from harness.report.csv_file import value_text
from harness.report.row_texts import decode_text
from harness.report.rows import Row, is_number
from harness.stats import paired
from harness.stats.scores import average_p, holm_adjusted
from harness.study.columns import AVERAGE, PERPLEXITY
from harness.study.schema import Status
from harness.study.store import Record

Scores = Mapping[tuple[str, int], float]
"""The scores of an arm by task and sample."""
MARGIN = 0.02
"""Accuracy that a method may lose and still be called near-lossless, where the settings don't say."""
RISES = 0.01
"""An oracle that is better with fewer blocks, with a p-value below this, is gated."""


def judge(rows: Sequence[Row], margin: float) -> list[Row]:
    """Return the rows with `p_holm` and, of accuracies, `margin` and `noninferior`, in their order.

    A family is what a reader looks at together: the averages of one model and length over all methods and sparsities, its rows
    of single tasks, or those of perplexity; where the question came after the context, a family of their own. margin: the
    accuracy that a method may lose and still be called non-inferior.
    """
    families: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for position, row in enumerate(rows):
        if row.p_value is not None:
            kind = row.task if row.task in (AVERAGE, PERPLEXITY) else "tasks"
            families[row.model, row.length, row.question, kind].append(position)
    judged = list(rows)
    for positions in families.values():
        p_values = [rows[position].p_value or 0.0 for position in positions]
        for position, p in zip(positions, holm_adjusted(p_values), strict=True):
            judged[position] = _with_claim(replace(rows[position], p_holm=p), margin)
    return judged


def _with_claim(row: Row, margin: float) -> Row:
    """Return a row of accuracy with whether it is shown to be non-inferior; any other as it is."""
    if row.score is None or row.score.comparison is None:
        return row
    return replace(row, margin=margin, noninferior=paired.is_noninferior(row.score.comparison.difference_low, margin))


def gate_rising(averages: Sequence[tuple[Row, Scores]]) -> list[Row]:
    """Return average rows, those of a bound (the oracle) gated that rise as blocks are left out: with fewer of the best blocks
    it can only get worse, so beyond noise it is the kernel, the density or the data that is wrong."""
    lines: dict[tuple[Any, ...], list[tuple[Row, Scores]]] = defaultdict(list)
    for row, scores in averages:
        if _on_bound(row):
            lines[_line(row)].append((row, scores))
    return [_gated(row, scores, lines[_line(row)]) if _on_bound(row) else row for row, scores in averages]


def _on_bound(row: Row) -> bool:
    """Return whether a row has accuracy and density, of the bound that others are measured against."""
    return row.score is not None and row.density is not None and method_facts(row.method).bound


def _line(row: Row) -> tuple[Any, ...]:
    """Return what rows of an oracle agree in where they differ in density alone. Of the knobs those that aren't numbers: a
    number goes with the density, as a threshold found for each does."""
    rule = tuple((name, value_text(value)) for name, value in row.knobs.items() if not is_number(value))
    setting = (row.model, row.method, row.length, row.seed, row.dtype, row.block_size, row.device)
    return rule, *setting, row.prefill_chunk, decode_text(row.decode), row.haystack, row.question


def _gated(row: Row, scores: Scores, line: Sequence[tuple[Row, Scores]]) -> Row:
    """Return a row of a line, gated where it is better than a denser one, of several the densest."""
    for denser, denser_scores in sorted(line, key=lambda member: -(member[0].density or 0.0)):
        if reason := _rises(row, scores, denser, denser_scores):
            return replace(row, status=Status.GATED, reason=reason)
    return row


def _rises(row: Row, scores: Scores, denser: Row, denser_scores: Scores) -> str | None:
    """Return why a row is suspect beside a denser one, on the samples that both have; None where it isn't."""
    keys = scores.keys() & denser_scores.keys()
    tasks = sorted({task for task, _ in keys})
    density, denser_density = row.density or 0.0, denser.density or 0.0
    if not keys or not density < denser_density - 0.005:
        return None
    by_task = [[key for key in sorted(keys) if key[0] == task] for task in tasks]
    sparser_groups = [[scores[key] for key in task] for task in by_task]
    denser_groups = [[denser_scores[key] for key in task] for task in by_task]
    if paired.mean_difference(sparser_groups, denser_groups) <= 0:
        return None
    p = average_p(sparser_groups, denser_groups, seed=row.seed)
    if p >= RISES:
        return None
    densities = f"density {density:.3f} than at {denser_density:.3f}"
    return f"{row.method} is better at {densities}, by more than noise (p={p:.2g}): suspected bug"


def scores_of(samples: Mapping[str, Sequence[Record]], cells: Sequence[Record]) -> dict[tuple[str, int], float]:
    """Return the scores of cells by task, with the version of its prompts, and sample, from the samples of all cells by id."""
    tasks = [(cell, f"{cell['identity']['task']} {cell['identity']['generator']}") for cell in cells]
    return {(task, sample["index"]): sample["score"] for cell, task in tasks for sample in samples.get(cell["cell"], [])}
