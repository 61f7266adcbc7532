"""Average rows that may stand beside each other: means over one set of tasks."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace

from harness.report.averages import mean_score
from harness.report.rows import Row
from harness.study.columns import AVERAGE

TaskData = tuple[str, str]
"""A task, and the data that it was made of: of other data (a subset of it, another text) it is another task."""


def comparable(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Return the average rows with an accuracy, brought to one set of tasks for each model, length and time of the question,
    and those left out.

    The set is the one most sparse arms have (of equals, the larger). An arm with more tasks is averaged over that set
    alone, and compared with nothing; an arm without some of it can't be compared and is left out. Accuracy and interval are
    those of the set.
    """
    task_rows, averages = _by_group(rows)
    panels: dict[tuple[str, int, str], list[Row]] = defaultdict(list)
    for row in averages:
        panels[row.model, row.length, row.question].append(row)
    compared: list[Row] = []
    left_out: list[Row] = []
    for panel in panels.values():
        sets = {row.group: frozenset(map(_task_data, task_rows[row.group])) for row in panel}
        votes = Counter(sets[row.group] for row in panel if not row.is_baseline) or Counter(sets.values())
        common = max(votes, key=lambda tasks: (votes[tasks], len(tasks), sorted(tasks)))
        for row in panel:
            if sets[row.group] == common:
                compared.append(row)
            elif sets[row.group] > common:
                compared.append(_average_over(row, [task for task in task_rows[row.group] if _task_data(task) in common]))
            else:
                left_out.append(row)
    return compared, left_out


def _by_group(rows: Sequence[Row]) -> tuple[dict[str | None, list[Row]], list[Row]]:
    """Return the rows of single tasks with an accuracy, by group, and one average row with an accuracy of each group."""
    task_rows: dict[str | None, list[Row]] = defaultdict(list)
    averages: dict[str | None, Row] = {}
    for row in rows:
        if row.score is None or not row.task:
            continue
        if row.task == AVERAGE:
            averages[row.group] = row
        else:
            task_rows[row.group].append(row)
    return task_rows, list(averages.values())


def _average_over(average: Row, rows: Sequence[Row]) -> Row:
    """Return an average row as it is over fewer tasks."""
    samples = sum(row.samples or 0 for row in rows)
    fewer = replace(average, score=mean_score(rows), samples=samples, tasks=len(rows))
    return replace(fewer, p_holm=None, margin=None, noninferior=None)


def _task_data(row: Row) -> TaskData:
    return row.task, row.haystack
