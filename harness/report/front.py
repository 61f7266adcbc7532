"""The Pareto front of rows: those that no other one beats in both accuracy and cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from harness.report.figures.looks import is_bound
from harness.report.notes import off_density
from harness.report.rows import Row
from harness.study.schema import Status


def is_bound_row(row: Row) -> bool:
    """Return whether a row is of a bound, at prefill or at decode, which no usable method reaches."""
    return is_bound(row.method) or (row.decode.method is not None and is_bound(row.decode.method))


def is_usable(row: Row) -> bool:
    """Return whether a row may be on a front: it is no bound, no check holds it back, and it is at the density that was asked
    for."""
    return row.score is not None and row.status == Status.OK and not is_bound_row(row) and not off_density(row)


def front_rows(rows: Sequence[Row], cost: Callable[[Row], float | None]) -> list[Row]:
    """Return the usable rows that have a cost and that no other such row beats, from the cheapest to the most accurate; as
    measured, whatever their intervals. Of rows equal in both the first one stands for all."""
    placed = [
        (value, -row.scored.accuracy, i) for i, row in enumerate(rows) if is_usable(row) and (value := cost(row)) is not None
    ]
    front: list[Row] = []
    for _, negative, i in sorted(placed):
        if not front or -negative > front[-1].scored.accuracy:
            front.append(rows[i])
    return front
