"""The one bar of the program, in a module of its own: a command that only shows its help need not import what draws one."""

from __future__ import annotations

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from harness.core.printable import printable


class Description(ProgressColumn):
    """The column of a bar that says what it counts, in one line, as it is."""

    def render(self, task: Task) -> Text:
        """Return the text."""
        return Text(printable(task.description))


def progress_bar(console: Console, show: bool) -> Progress:
    """Return a bar for the terminal, gone when it is done; one that shows nothing where nobody looks."""
    return Progress(
        Description(),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("eta"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not (show and console.is_terminal),
    )
