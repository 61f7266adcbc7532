"""Rows as they are on some of their prompts: accuracy with its interval and densities, from the answers that rows hold."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from harness.report.averages import mean_score
from harness.report.prompt_sets import Prompts
from harness.report.rows import Answer, Row
from harness.report.significance import judge
from harness.report.study_records import mean_known, mean_of_all
from harness.stats.scores import mean_interval
from harness.study.verdict import Score, compare

Beside = tuple[str | None, str]
"""The group and the set of prompts of an average and of the rows of single tasks behind it."""


def task_on(row: Row, prompts: Prompts) -> Row:
    """Return a row of a single task as it is on those of its prompts that are among `prompts`; compared with nothing, unless
    that is all of them."""
    answers = {index: answer for index, answer in row.answers.items() if (row.samples_seen, index) in prompts}
    return row if len(answers) == len(row.answers) else with_answers(row, answers)


def with_answers(row: Row, answers: dict[int, Answer]) -> Row:
    """Return a row of a single task with other answers, its numbers made of them."""
    scores = [answer.score for answer in answers.values()]
    dense = row.block_size is None
    return replace(
        without_claims(row),
        answers=answers,
        samples=len(answers),
        score=Score(statistics.fmean(scores), *mean_interval(scores)),
        density=row.density if dense else mean_known(answer.density for answer in answers.values()),
        token_density=row.token_density if dense else mean_of_all([answer.token_density for answer in answers.values()]),
        decode_density=mean_known(answer.decode_density for answer in answers.values()),
    )


def average_of(average: Row, rows: Sequence[Row]) -> Row:
    """Return an average row over other rows of single tasks than its own: their mean accuracy and densities."""
    return replace(
        without_claims(average),
        score=mean_score(rows),
        samples=sum(row.samples or 0 for row in rows),
        tasks=len(rows),
        density=mean_known(row.density for row in rows),
        token_density=mean_of_all([row.token_density for row in rows]),
        decode_density=mean_known(row.decode_density for row in rows),
    )


def without_claims(row: Row) -> Row:
    """Return a row without what was said of it beside others on all of its prompts."""
    return replace(row, p_holm=None, margin=None, noninferior=None)


def with_comparisons(averages: Sequence[Row], tasks: Sequence[Row], margin: float) -> list[Row]:
    """Return averages, in their order, each compared with dense attention on its prompts again where it is on fewer than were
    measured, with claims over all that stand beside it. tasks: the rows of single tasks behind them."""
    by_average: dict[Beside, list[Row]] = defaultdict(list)
    for row in tasks:
        by_average[row.group, row.prompt_set].append(row)
    panels: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for position, row in enumerate(averages):
        panels[row.model, row.device, row.length, row.question, row.prompt_set].append(position)
    compared = list(averages)
    for positions in panels.values():
        beside = [averages[position] for position in positions]
        dense = {(row.seed, row.dtype): by_average[row.group, row.prompt_set] for row in beside if row.is_baseline}
        again = [_compared(row, by_average[row.group, row.prompt_set], dense.get((row.seed, row.dtype), [])) for row in beside]
        if any(new is not old for new, old in zip(again, beside, strict=True)):
            again = judge(again, margin)
        for position, row in zip(positions, again, strict=True):
            compared[position] = row
    return compared


def _compared(average: Row, tasks: Sequence[Row], dense: Sequence[Row]) -> Row:
    """Return an average with its comparison with dense attention, if it has none and both have their answers to every task."""
    if average.is_baseline or average.score is None or average.score.comparison is not None:
        return average
    answers = {(row.task, row.samples_seen): row.answers for row in dense}
    groups = [(row.answers, answers.get((row.task, row.samples_seen), {})) for row in tasks]
    paired = [[(one[i].score, other[i].score) for i in one if i in other] for one, other in groups]
    if not paired or not all(paired):
        return average
    method_scores, dense_scores = ([[pair[side] for pair in task] for task in paired] for side in (0, 1))
    return replace(average, score=replace(average.score, comparison=compare(method_scores, dense_scores, average.seed)))
