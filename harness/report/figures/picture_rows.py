"""Which rows one picture may hold, and what is said about them below it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from harness.core.question import QUESTION_TITLES
from harness.report.common_tasks import compared_rows
from harness.report.notes import same_prompts
from harness.report.row_texts import question_title
from harness.report.rows import Row
from harness.study.columns import PERPLEXITY
from harness.study.schema import Status

PREFERRED_SPARSITY = 0.9
"""What is shown of several sparsities that are measured alike."""


def by_model(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    """Return the average rows that have an accuracy and compare (`harness.report.common_tasks`), by model and device: what one
    picture may hold together, a length on the same prompts. Those whose question was not seen with the context, and those on a
    set of prompts beside the main one, are of a model whose name says so."""
    return {key: averages for key, (averages, _) in with_tasks(rows).items()}


def with_tasks(rows: Sequence[Row]) -> dict[tuple[str, str], tuple[list[Row], list[Row]]]:
    """Return what `by_model` does, and beside the average rows those of the single tasks behind them."""
    compared = compared_rows(rows)
    sets: dict[tuple[str, str], tuple[list[Row], list[Row]]] = defaultdict(lambda: ([], []))
    for kind, members in enumerate((compared.averages, compared.tasks)):
        for row in members:
            sets[model_name(row), row.device][kind].append(row)
    return sets


def model_name(row: Row) -> str:
    """Return a row's model, how it was asked where that was not with the context, and on how many prompts where others of the
    model and length are on a set that more arms have."""
    return _main_name(row) + (f", {row.prompt_set}" if row.prompt_set else "")


def _main_name(row: Row) -> str:
    return row.model + question_title(row.question)


def numbers(sets: Mapping[tuple[str, str], Sequence[Row]]) -> dict[tuple[str, str], int]:
    """Return the number of each set's model and device, counted in the order of their names; a set of prompts beside the main
    one has that of its model."""
    mains = sorted({(_main_name(members[0]), members[0].device) for members in sets.values()})
    return {key: mains.index((_main_name(members[0]), members[0].device)) for key, members in sets.items()}


def main_key(rows: Sequence[Row]) -> tuple[str, str]:
    """Return the model and device of a set of rows, whichever set of prompts they are on."""
    return _main_name(rows[0]), rows[0].device


def prompts_suffix(rows: Sequence[Row]) -> str:
    """Return how the name of a picture ends whose rows are on a set of prompts beside the main one; else nothing."""
    words = "".join(c if c.isalnum() else " " for c in rows[0].prompt_set).split()
    return f"_{'-'.join(words)}" if words else ""


def scored_rows(rows: Sequence[Row]) -> list[Row]:
    """Return the rows that have an accuracy, of single tasks and averages."""
    return [row for row in rows if row.task not in ("", PERPLEXITY) and row.score is not None]


def usual_sparsity(sparsities: Iterable[float | None]) -> float:
    """Return the sparsity that comes most often, of those the nearest to 0.9, which it is where there is none."""
    counts = Counter(sparsity for sparsity in sparsities if sparsity is not None)
    nearest = max(counts, key=lambda s: (counts[s], -abs(s - PREFERRED_SPARSITY)), default=PREFERRED_SPARSITY)
    return nearest


def note(rows: Sequence[Row], device: str, *, bars: str = "bars", gated: str = "") -> str:
    """Return what the reader must know, below a picture. bars: how intervals look, nothing where they aren't drawn; gated: how
    rows look that a check holds back, nothing where a sign says it."""
    held_back = f"; {gated}: held back by a check" if gated and any(row.status == Status.GATED for row in rows) else ""
    interval = f", {bars}: 95 % interval" if bars else ""
    return f"Mean over tasks, {same_prompts(rows)}{interval}{held_back}.\n{_phases(rows)}Measured on {device}."


def _phases(rows: Sequence[Row]) -> str:
    """Return a sentence that says what ran at prefill and at decode, where all rows have it in common."""
    sparse = [row for row in rows if not row.is_baseline]
    phases = "Sparse prefill, full attention at decode. " if all(row.decode.method is None for row in rows) else ""
    if sparse and all(row.block_size is None for row in sparse):
        phases = "Dense prefill, sparse decode. "
    if sparse and sparse[0].question in QUESTION_TITLES:  # a picture holds one of them
        phases += f"The {QUESTION_TITLES[sparse[0].question]} had full attention. "
    return phases


def interval(row: Row) -> tuple[float, float]:
    """Return the ends of the interval of a row's accuracy, per cent."""
    return 100 * row.scored.accuracy_low, 100 * row.scored.accuracy_high
