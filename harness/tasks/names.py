"""The names of all tasks and of the groups of them, for the command's help and its errors: neither torch nor data is loaded."""

from __future__ import annotations

from collections.abc import Sequence

from harness.core.errors import UserError, did_you_mean
from harness.tasks.longbench import names as longbench
from harness.tasks.ruler import names as ruler

TASKS: tuple[str, ...] = (*ruler.TASKS, *longbench.TASKS, *longbench.TASKS_E)
GROUPS: dict[str, tuple[str, ...]] = {
    "demo": ("niah_single_1", "niah_single_2", "niah_multikey_1", "niah_multivalue", "vt"),  # a lost block shows in a minute
    **ruler.GROUPS,
    **longbench.GROUPS,
}
"""The tasks that one name stands for."""
BENCHMARKS: dict[str, tuple[str, ...]] = {
    "ruler": ruler.TASKS,
    "longbench": longbench.TASKS,
    "longbench_e": longbench.TASKS_E,
}
"""The tasks of each benchmark."""
LISTED_TASKS: tuple[str, ...] = (*ruler.TASKS, *longbench.TASKS)
"""The tasks that help and errors list: the buckets of LongBench-E are in the groups."""


def benchmark_of(task: str) -> str:
    """Return the benchmark that a task is of; an empty text for a recorded task that is of none any more."""
    return next((name for name, tasks in BENCHMARKS.items() if task in tasks), "")


def group_of(tasks: Sequence[str]) -> str:
    """Return the name of the group that tasks are, in whatever order; else their names in order, joined by +."""
    names = set(tasks)
    return next((group for group, members in GROUPS.items() if set(members) == names), "+".join(sorted(names)))


def check_name(name: str) -> str:
    """Return the name of a task. Raises UserError, which lists tasks and groups, for any other."""
    if name not in TASKS:
        close = did_you_mean(name, (*TASKS, *GROUPS))
        raise UserError(
            f"task {name} is not known{close}; choose from: {', '.join(LISTED_TASKS)}, or a group: {', '.join(GROUPS)}"
        )
    return name


def expand_tasks(selection: str | Sequence[str]) -> list[str]:
    """Return the task names, each once, that a name, a group, a comma list or a list of these stands for.

    Raises UserError for a name that is neither a task's nor a group's.
    """
    parts = selection.split(",") if isinstance(selection, str) else selection
    tasks: dict[str, None] = {}
    for part in (part.strip() for part in parts):
        tasks |= dict.fromkeys(GROUPS[part] if part in GROUPS else (check_name(part),))
    return list(tasks)
