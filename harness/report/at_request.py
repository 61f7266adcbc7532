"""Rows as comparisons at a requested density have them: matched ones as they are, two neighbours as one row between them.

Where a knob is a whole number, the arms of the two whole numbers beside the request are both `nearest`. What the method reaches
at the request is interpolated between them, linearly in the density, sample by sample where their answers are known. Rows that
are `off_density` are compared with nothing.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from harness.report.averages import mean_score
from harness.report.density_match import arm_but_numbers, neighbour_of, prefill_request
from harness.report.rescored import with_answers, without_claims
from harness.report.rows import Answer, Perplexity, Row
from harness.stats import bootstrap
from harness.study.matching import Match
from harness.study.schema import Status
from harness.study.verdict import Score


@dataclass(frozen=True)
class AtRequest:
    """Averages that compare at their requests, with those asked for no density; the rows of single tasks behind them; and the
    averages left out, which are off_density."""

    averages: list[Row]
    tasks: list[Row]
    left_out: list[Row]


def at_request(averages: Sequence[Row], tasks: Sequence[Row] = ()) -> AtRequest:
    """Return the rows that compare at the density they were asked for, in the order of the averages."""
    arms: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in averages:
        arms[arm_but_numbers(row)].append(row)
    by_average: dict[tuple[str | None, str], list[Row]] = defaultdict(list)
    for row in tasks:
        by_average[row.group, row.prompt_set].append(row)
    shown = AtRequest([], [], [])
    for row in averages:
        own = by_average[row.group, row.prompt_set]
        others = arms[arm_but_numbers(row)]
        if row.match != Match.NEAREST:
            _add(shown, row, own)
        elif any(other.match == Match.MATCHED for other in others):
            continue  # the matched row stands for both
        elif (other := neighbour_of(row, others)) is None:
            shown.left_out.append(row)
        elif (row.density or 0.0) < (other.density or 0.0):
            between = interpolated_tasks(row, other, own, by_average[other.group, other.prompt_set])
            _add(shown, interpolated(row, other, between), between)
    return shown


def _add(shown: AtRequest, row: Row, tasks: Iterable[Row]) -> None:
    """Add an average and its tasks, or the average alone to those left out."""
    if row.match == Match.OFF_DENSITY:
        shown.left_out.append(row)
    else:
        shown.averages.append(row)
        shown.tasks.extend(tasks)


def is_interpolated(row: Row) -> bool:
    """Return whether a row stands between those of two whole numbers."""
    return row.match == Match.NEAREST and row.density == prefill_request(row)


def interpolated(lower: Row, upper: Row, tasks: Sequence[Row]) -> Row:
    """Return the average at the request between those of a lower and a higher density. tasks: the interpolated rows of single
    tasks; without any the averages' own numbers are interpolated, and of rows of perplexity the loss. Times are of neither."""
    weight, score = _weight(lower, upper), None
    if lower.score is not None and upper.score is not None:
        score = mean_score(tasks) if tasks else _score_between(lower, upper, weight)
    samples = sum(row.samples or 0 for row in tasks) if tasks else lower.samples
    return replace(
        _between(lower, upper),
        score=score,
        perplexity=_perplexity_between(lower.perplexity, upper.perplexity, weight),
        samples=samples,
        density=prefill_request(lower),
        reason=f"interpolated between densities {lower.density or 0.0:.4f} and {upper.density or 0.0:.4f}",
    )


def interpolated_tasks(lower: Row, upper: Row, lower_tasks: Sequence[Row], upper_tasks: Sequence[Row]) -> list[Row]:
    """Return the rows of the tasks that two averages have, between theirs. Of each task the samples that both have are
    interpolated one by one."""
    weight = _weight(lower, upper)
    uppers = {(row.task, row.haystack): row for row in upper_tasks}
    rows = []
    for row in lower_tasks:
        other = uppers.get((row.task, row.haystack))
        if other is None:
            continue
        between = replace(_between(row, other), group=f"{lower.group}+{upper.group}")
        answers = {
            index: Answer((1 - weight) * row.answers[index].score + weight * other.answers[index].score)
            for index in row.answers
            if index in other.answers and row.samples_seen == other.samples_seen
        }
        if answers:
            rows.append(with_answers(between, answers))
        elif not row.answers:
            rows.append(replace(between, score=_score_between(row, other, weight)))
    return rows


def _weight(lower: Row, upper: Row) -> float:
    """Return the weight of the upper row: how far the request lies from the lower density towards the upper one."""
    request = prefill_request(lower)
    if request is None or lower.density is None or upper.density is None:
        raise ValueError(f"rows of {lower.method}: nothing was asked for that lies between them")
    return (request - lower.density) / (upper.density - lower.density)


def _between(lower: Row, upper: Row) -> Row:
    """Return what two rows have in common where one stands for both; numbers are not in it yet."""
    status = Status.GATED if Status.GATED in (lower.status, upper.status) else lower.status
    return replace(
        without_claims(lower),
        group=f"{lower.group}+{upper.group}",
        status=status,
        times=None,
        token_density=None,
        kept_mass=None,
        match=Match.NEAREST,
    )


def _score_between(lower: Row, upper: Row, weight: float) -> Score:
    """Return accuracy and interval between those of two rows."""
    low, high = lower.scored, upper.scored

    def between(one: float, other: float) -> float:
        return (1 - weight) * one + weight * other

    return Score(
        between(low.accuracy, high.accuracy),
        between(low.accuracy_low, high.accuracy_low),
        between(low.accuracy_high, high.accuracy_high),
    )


def _perplexity_between(lower: Perplexity | None, upper: Perplexity | None, weight: float) -> Perplexity | None:
    """Return the perplexity whose loss is between those of two rows, its interval likewise; compared with nothing."""
    if lower is None or upper is None:
        return None

    def between(one: float | None, other: float | None) -> float | None:
        if one is None or other is None:
            return None
        return math.exp((1 - weight) * math.log(one) + weight * math.log(other))

    loss = (1 - weight) * lower.nll + weight * upper.nll
    low, high = between(lower.perplexity_low, upper.perplexity_low), between(lower.perplexity_high, upper.perplexity_high)
    tokens_s = (1 - weight) * lower.tokens_s + weight * upper.tokens_s
    return Perplexity(loss, bootstrap.perplexity(loss), low, high, tokens_s)
