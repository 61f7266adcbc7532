"""The task of a name."""

from __future__ import annotations

from harness.tasks.longbench import names as longbench
from harness.tasks.longbench.task import LongBenchTask
from harness.tasks.names import check_name
from harness.tasks.protocol import Task
from harness.tasks.ruler.task import RulerTask


def get(name: str) -> Task:
    """Return the task called `name`. Raises UserError, which lists the names there are, for an unknown one."""
    check_name(name)
    return LongBenchTask(name) if name.startswith(longbench.PREFIX) else RulerTask(name)
