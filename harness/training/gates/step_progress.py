"""What a training of gates shows while it runs: a bar in a terminal, else a line now and then."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

from harness.training.gates.checkpoint import Step

LINES = 20
"""Lines that are printed of a training where there is no terminal, and one of its first step."""


@contextmanager
def step_progress(steps: int, console: Console, done: int = 0) -> Iterator[Callable[[Step], None]]:
    """Show loss and recall of each step. What it yields is called with each step. done: steps of a killed training."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("gates"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[numbers]}"))
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("gates", total=steps, completed=done, numbers="no step is done yet")

        def show(step: Step) -> None:
            count, numbers = step.step + 1, f"KL {step.loss:.4f}  recall {step.recall:.1%}"
            bar.update(task, completed=count, numbers=numbers)
            if not console.is_terminal and (count in (done + 1, steps) or count % max(1, steps // LINES) == 0):
                console.print(f"step {count} of {steps}: {numbers}", highlight=False)

        yield show
