"""Whether rows are at the densities that they were asked for: matched, nearest or off_density (`harness.study.matching`).

An arm is judged by its average row, once for each set of prompts; rows of single tasks carry its verdict. What has no average,
a row of perplexity, of a timing or of an attention mass alone, is judged by its own prompts.

What was asked for at prefill is `sparsity`, held against `density`; at decode it is the knob `decode.sparsity`, held against
`decode_density`. A budget or a threshold asks for no density, and neither does dense attention. Of two requests the worse
verdict counts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from harness.core.method_facts import method_facts
from harness.report.csv_file import value_text
from harness.report.row_texts import decode_text
from harness.report.rows import Row, is_number
from harness.study.columns import AVERAGE, PERPLEXITY
from harness.study.matching import Match, match_of

SEVERITY = (None, Match.MATCHED, Match.NEAREST, Match.OFF_DENSITY)
"""Verdicts from the best to the worst."""


def with_matches(rows: Sequence[Row]) -> list[Row]:
    """Return rows, in their order, with how their densities compare with their requests."""
    whole = iter(judge_densities([row for row in rows if not _is_single_task(row)]))
    judged = [row if _is_single_task(row) else next(whole) for row in rows]
    of_arms = {row.group: row.match for row in judged if row.task == AVERAGE}
    return [replace(row, match=of_arms.get(row.group)) if _is_single_task(row) else row for row in judged]


def judge_densities(rows: Sequence[Row]) -> list[Row]:
    """Return rows, each of a set of prompts of its own, by the densities in them. One of two whole numbers beside a request is
    `nearest` where the other is among the rows, on the other side of the request; else it is off_density."""
    judged = [replace(row, match=_match(row)) for row in rows]
    arms: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in judged:
        arms[arm_but_numbers(row)].append(row)
    return [
        replace(row, match=Match.OFF_DENSITY)
        if row.match == Match.NEAREST and neighbour_of(row, arms[arm_but_numbers(row)]) is None
        else row
        for row in judged
    ]


def prefill_request(row: Row) -> float | None:
    """Return the density that a row was asked for at prefill; None for dense attention, or where none was asked for."""
    return None if row.block_size is None or row.sparsity is None else 1 - row.sparsity


def effective_density(row: Row) -> float | None:
    """Return the density that a limit is held against: as measured or, of a row at the density that it was asked for, that one
    where it is less. Else a limit of 0.2 would leave out every method that was asked for 0.2 and came to 0.2003. None where no
    density is known."""
    request = prefill_request(row)
    if row.density is None or request is None or row.match != Match.MATCHED:
        return row.density
    return min(row.density, round(request, 12))  # 1 - 0.7 is above 0.3


def neighbour_of(row: Row, rows: Iterable[Row]) -> Row | None:
    """Return the row of the whole number on the other side of the request of a row that is `nearest`; None where none is."""
    request = prefill_request(row)
    if request is None or row.density is None:
        return None
    for other in rows:
        if other.match != Match.NEAREST or other.density is None:
            continue
        if (other.density - request) * (row.density - request) < 0:
            return other
    return None


def arm_but_numbers(row: Row) -> tuple[Any, ...]:
    """Return what the rows of two whole numbers beside a request agree in: everything but the knob that was searched, or the
    numbers among their knobs where the method is of another version, which doesn't say what it searches."""
    searched = method_facts(row.method).searched
    rule = tuple(
        (name, value_text(value))
        for name, value in row.knobs.items()
        if (name not in searched if searched else not is_number(value))
    )
    setting = (row.model, row.method, row.sparsity, row.length, row.seed, row.dtype, row.block_size, row.device)
    asked = (row.prefill_chunk, decode_text(row.decode), row.question)
    return rule, *setting, *asked, row.haystack, row.task, row.tasks, row.prompt_set


def _match(row: Row) -> Match | None:
    """Return the worse of the verdicts at prefill and at decode."""
    return max(prefill_match(row), decode_match(row), key=SEVERITY.index)


def prefill_match(row: Row) -> Match | None:
    """Return the verdict on the density at prefill, None where none was asked for. A row that is `nearest` need not have a
    neighbour (`judge_densities`)."""
    return match_of(row.sparsity, row.density, neighbour=row.neighbour) if prefill_request(row) is not None else None


def decode_match(row: Row) -> Match | None:
    """Return the verdict on the density at decode, None where none was asked for."""
    return match_of(_decode_sparsity(row), row.decode_density)


def _decode_sparsity(row: Row) -> float | None:
    """Return the sparsity that was asked for at decode, if one was."""
    sparsity = row.decode.knobs.get("sparsity") if row.decode.method is not None else None
    return float(sparsity) if is_number(sparsity) and sparsity is not None else None


def _is_single_task(row: Row) -> bool:
    return row.task not in ("", AVERAGE, PERPLEXITY)
