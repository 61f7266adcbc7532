"""Average rows that may stand beside each other: means over one set of tasks."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from harness.report import significance
from harness.report.leaderboard import Row, is_baseline_row, mean_accuracy
from harness.study.schema import AVERAGE


def comparable(table: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """The average rows with an accuracy, brought to one set of tasks for each model, length and time of the question, and those
    left out.

    The set is the one most sparse arms have (of equals, the larger). An arm with more tasks is averaged over that set
    alone; an arm without some of it can't be compared and is left out. Accuracy and interval are those of the set. A task
    of other data (a subset of it, another text) is another task.
    """
    by_group: dict[str, list[Row]] = defaultdict(list)
    averages: dict[str, Row] = {}
    for row in table:
        if row["accuracy"] is not None and row["task"]:
            if row["task"] == AVERAGE:
                averages[row["_group"]] = row
            else:
                by_group[row["_group"]].append(row)
    kept: list[Row] = []
    left: list[Row] = []
    panels: dict[tuple[str, int, str], list[str]] = defaultdict(list)
    for group, row in averages.items():
        panels[row["model"], row["length"], row["question"]].append(group)
    for groups in panels.values():
        sets = {group: frozenset(map(_asked, by_group[group])) for group in groups}
        votes = Counter(sets[g] for g in groups if not is_baseline_row(averages[g])) or Counter(sets.values())
        chosen = max(votes, key=lambda tasks: (votes[tasks], len(tasks), sorted(tasks)))
        for group in groups:
            if sets[group] == chosen:
                kept.append(averages[group])
            elif sets[group] > chosen:
                mine = [r for r in by_group[group] if _asked(r) in chosen]
                fewer = {"samples": sum(r["samples"] for r in mine), "tasks": len(mine)}
                kept.append(averages[group] | dict.fromkeys(significance.COMPARED) | mean_accuracy(mine) | fewer)
            else:
                left.append(averages[group])
    return kept, left


def _asked(row: Row) -> tuple[str, str]:
    """The task of a row, and the data that it was made of."""
    return row["task"], str(row["haystack"])
