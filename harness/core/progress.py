"""The one bar of the program, in a module of its own: a command that only shows its help need not import what draws one.

Where the output is no terminal there is no bar, but a line a minute.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from harness.core.activity import CURRENT, MINUTE, OVERALL, every, pace
from harness.core.printable import printable

LOOKS = 1.0
"""Seconds between two looks whether a line is due."""
_last_line = time.monotonic()
"""When a line was printed last; at first, when the process began."""


class Description(ProgressColumn):
    """The column of a bar that says what it counts, in one line, as it is."""

    def render(self, task: Task) -> Text:
        """Return the text."""
        return Text(printable(task.description))


class Bar(Progress):
    """A bar that also notes what it shows as the activity of this process, and prints it where there is no terminal."""

    def __init__(self, *columns: ProgressColumn, lines: bool, of_all: bool = True, **how: Any) -> None:
        super().__init__(*columns, **how)
        self._lines, self._of_all, self._ticking, self._first = lines, of_all, ExitStack(), dict[TaskID, int]()

    def start(self) -> None:
        """Show the bar, or begin with the lines."""
        super().start()
        if self._lines:
            self._ticking.enter_context(every(LOOKS, self._print_when_due))

    def stop(self) -> None:
        """Take the bar away, and print no more lines."""
        self._ticking.close()
        super().stop()
        CURRENT.end()

    def add_task(self, description: str, *args: Any, **fields: Any) -> TaskID:
        """Begin something that is counted; the same arguments as those of rich."""
        task = super().add_task(description, *args, **fields)
        shown = self._tasks[task]
        self._first[task] = int(shown.completed)
        CURRENT.begin(description, int(shown.total or 0), self._first[task])
        return task

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        """Count on."""
        super().advance(task_id, advance)
        self._note(task_id)

    def update(self, task_id: TaskID, **changes: Any) -> None:
        """Change what is counted, or how much of it is done; the same arguments as those of rich."""
        super().update(task_id, **changes)
        self._note(task_id)

    def _note(self, task_id: TaskID) -> None:
        task = self._tasks[task_id]
        CURRENT.move(task.description, int(task.completed), int(task.total or 0), self._first[task_id])

    def _print_when_due(self) -> None:
        """Print how far the work is, where the last line of any bar is a minute old: many take less."""
        global _last_line
        if time.monotonic() - _last_line < MINUTE:
            return
        _last_line = time.monotonic()
        self.console.print(line_of_work(of_all=self._of_all), highlight=False, soft_wrap=True)


def line_of_work(*, of_all: bool = True) -> str:
    """Return the line that tells how far this process is, and (of_all) how far all jobs of the command are."""
    now = CURRENT
    speed = pace(now.done, now.total, now.first, time.time() - now.since)
    parts = [f"{now.text}: {now.done} of {now.total}, {speed}"]
    if now.job[1] > 1:
        parts.append(f"job {now.job[0]} of {now.job[1]}")
    if OVERALL and of_all:
        parts.append(OVERALL[-1]())
    return "; ".join(filter(None, parts))


def progress_bar(console: Console, show: bool, *columns: ProgressColumn, transient: bool = True) -> Bar:
    """Return a bar for the terminal; a line a minute elsewhere, and nothing where nobody looks. columns: instead of those that
    count units and time; transient: whether it is gone when it is done."""
    usual = (
        Description(),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("eta"),
        TimeRemainingColumn(),
    )
    drawn = show and console.is_terminal
    lines = show and not console.is_terminal and not console.quiet
    return Bar(*(columns or usual), lines=lines, console=console, transient=transient, disable=not drawn)


def progress_lines(console: Console, show: bool) -> Bar:
    """Return what prints a line a minute where there is no terminal, and draws no bar on one: it is for what is timed, which
    nothing may disturb. It does not ask how far all jobs are, either."""
    lines = show and not console.is_terminal and not console.quiet
    return Bar(lines=lines, of_all=False, console=console, disable=True)
