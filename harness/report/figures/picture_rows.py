"""Which rows one picture may hold, and what is said about them below it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from harness.core.question import QUESTION_TITLES
from harness.report.common_tasks import comparable
from harness.report.row_texts import question_title
from harness.report.rows import Row
from harness.study.columns import PERPLEXITY
from harness.study.schema import Status

PREFERRED_SPARSITY = 0.9
"""What is shown of several sparsities that are measured alike."""


def by_model(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    """Return the average rows that have an accuracy and compare (`harness.report.common_tasks`), by model and device: what one
    picture may hold together. Those whose question was not seen with the context are of a model whose name says so."""
    sets: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in comparable(rows)[0]:
        sets[model_name(row), row.device].append(row)
    return sets


def model_name(row: Row) -> str:
    """Return a row's model, and how it was asked where that was not with the context."""
    return row.model + question_title(row.question)


def scored_rows(rows: Sequence[Row]) -> list[Row]:
    """Return the rows that have an accuracy, of single tasks and averages."""
    return [row for row in rows if row.task not in ("", PERPLEXITY) and row.score is not None]


def usual_sparsity(sparsities: Iterable[float | None]) -> float:
    """Return the sparsity that comes most often, of those the nearest to 0.9, which it is where there is none."""
    counts = Counter(sparsity for sparsity in sparsities if sparsity is not None)
    nearest = max(counts, key=lambda s: (counts[s], -abs(s - PREFERRED_SPARSITY)), default=PREFERRED_SPARSITY)
    return nearest


def count_range(counts: Iterable[int | None], between: str, form: str = "") -> str:
    """Return how many samples (or documents) points have: a number, or the least and the most with `between` them. form: the
    format of a number."""
    ordered = sorted({count or 0 for count in counts})
    texts = [f"{ordered[0]:{form}}", f"{ordered[-1]:{form}}"]
    return texts[0] if len(ordered) == 1 else between.join(texts)


def note(rows: Sequence[Row], device: str, *, bars: str = "bars", gated: str = "hollow") -> str:
    """Return what the reader must know, below a picture. bars: how intervals look, nothing where they aren't drawn; gated: how
    rows look that a gate holds back."""
    held_back = f"; {gated}: held back by a sanity gate" if any(row.status == Status.GATED for row in rows) else ""
    interval = f", {bars}: 95 % interval" if bars else ""
    counts = count_range((row.samples for row in rows), "–")
    return f"Mean over tasks, {counts} samples a point{interval}{held_back}.\n{_phases(rows)}Measured on {device}."


def _phases(rows: Sequence[Row]) -> str:
    """Return a sentence that says what ran at prefill and at decode, where all rows have it in common."""
    sparse = [row for row in rows if not row.is_baseline]
    phases = "Sparse prefill, full attention at decode. " if all(row.decode.method is None for row in rows) else ""
    if sparse and all(row.block_size is None for row in sparse):
        phases = "Dense prefill, sparse decode. "
    if sparse and sparse[0].question in QUESTION_TITLES:  # a picture holds one of them
        phases += f"The {QUESTION_TITLES[sparse[0].question]} had full attention. "
    return phases


def error_bars(row: Row) -> tuple[float, float]:
    """Return the lengths of the bar below and above the accuracy of a row, per cent."""
    score = row.scored
    return max(0.0, score.percent - 100 * score.accuracy_low), max(0.0, 100 * score.accuracy_high - score.percent)
