"""Rows that may stand beside each other: of one set of tasks, and on the same prompts."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from harness.report.density_match import judge_densities
from harness.report.prompt_sets import Prompts, prompt_sets, titles
from harness.report.rescored import average_of, task_on
from harness.report.rows import Row
from harness.study.columns import AVERAGE

TaskData = tuple[str, str, str]
"""A task, the data that it was made of, and the version of its prompts: of other data (a subset of it, another text), or with
prompts that were made otherwise, it is another task."""
TasksOf = Mapping[str | None, list[Row]]
"""Rows of single tasks by the group of their average."""


@dataclass(frozen=True)
class Compared:
    """Rows that may stand beside each other where model, device, length, question and `prompt_set` are equal.

    averages: of one set of tasks and prompts each. tasks: the rows of single tasks behind them, of the same group and
    `prompt_set`. left_out: averages that have no place beside any other.
    """

    averages: list[Row]
    tasks: list[Row]
    left_out: list[Row]


def comparable(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Return the averages that may stand beside each other, and those left out: see `compared_rows`."""
    compared = compared_rows(rows)
    return compared.averages, compared.left_out


def compared_rows(rows: Sequence[Row]) -> Compared:
    """Return the rows with an accuracy, brought to one set of tasks and prompts for each model, device, length and time of the
    question.

    The tasks are those that most sparse arms have (of equals, the larger set); an arm without some of them can't be compared
    and is left out. The prompts of these tasks are `prompt_sets`: an arm stands in each set whose prompts it saw, with accuracy
    and densities on those alone. In the first of several sets `prompt_set` is empty, in the others it says how many prompts
    they have. An arm with more tasks or prompts than are compared is compared with dense attention no longer.
    """
    task_rows, averages = _by_group(rows)
    panels: dict[tuple[str, str, int, str], list[Row]] = defaultdict(list)
    for row in averages:
        panels[row.model, row.device, row.length, row.question].append(row)
    compared = Compared([], [], [])
    for panel in panels.values():
        _compare_panel(panel, task_rows, compared)
    return compared


def _compare_panel(panel: Sequence[Row], task_rows: TasksOf, compared: Compared) -> None:
    """Add the rows of one panel to those that are compared."""
    by_group, left_out = _on_common_tasks(panel, task_rows)
    arms = {row.group or "": row for row in panel if row.group in by_group}
    seen = {group: _prompts(by_group[row.group]) for group, row in arms.items()}
    sparse = {group: prompts for group, prompts in seen.items() if not arms[group].is_baseline}
    sets = prompt_sets(sparse, {group: prompts for group, prompts in seen.items() if group not in sparse})
    placed = {group for prompt_set in sets for group in prompt_set.arms}
    compared.left_out.extend([*left_out, *(row for group, row in arms.items() if group not in placed)])
    for prompt_set, title in zip(sets, titles(sets, "prompt"), strict=True):
        averages = []
        for average in (row for group, row in arms.items() if group in prompt_set.arms):
            tasks = [task_on(row, prompt_set.prompts) for row in by_group[average.group]]
            if list(map(id, tasks)) != list(map(id, task_rows.get(average.group, []))):
                average = average_of(average, tasks)
            averages.append(replace(average, prompt_set=title) if title else average)
            compared.tasks.extend(replace(row, prompt_set=title) if title else row for row in tasks)
        compared.averages.extend(judge_densities(averages))


def _on_common_tasks(panel: Sequence[Row], task_rows: TasksOf) -> tuple[dict[str | None, list[Row]], list[Row]]:
    """Return the rows of the tasks that are compared, by the group of their average, and the averages that lack some."""
    sets = {row.group: frozenset(map(_task_data, task_rows.get(row.group, []))) for row in panel}
    votes = Counter(sets[row.group] for row in panel if not row.is_baseline) or Counter(sets.values())
    common = max(votes, key=lambda tasks: (votes[tasks], len(tasks), sorted(tasks)))
    by_group = {
        row.group: [task for task in task_rows.get(row.group, []) if _task_data(task) in common]
        for row in panel
        if sets[row.group] >= common
    }
    return by_group, [row for row in panel if row.group not in by_group]


def _by_group(rows: Sequence[Row]) -> tuple[TasksOf, list[Row]]:
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


def _prompts(rows: Sequence[Row]) -> Prompts:
    """Return the prompts behind rows of single tasks."""
    return frozenset((row.samples_seen, index) for row in rows for index in row.answers)


def _task_data(row: Row) -> TaskData:
    return row.task, row.haystack, row.generator
