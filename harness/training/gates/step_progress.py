"""What a training of gates shows while it runs: a bar in a terminal, else a line now and then."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console

from harness.training.gates.checkpoint import Step

LINES = 20
"""Lines that are printed of a training where there is no terminal, and one of its first step."""

Show = Callable[[str, Step], None]
"""Takes the name of a training, and a step that it has done."""


@contextmanager
def step_progress(counts: Mapping[str, tuple[int, int]], console: Console) -> Iterator[Show]:
    """Show loss and recall of each step. What it yields is called with each step.

    counts: steps of each training by its name, and how many a killed command has done; the name is shown where there are
    several.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("gates {task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[numbers]}"))
    labels = dict(zip(counts, counts if len(counts) > 1 else ("",), strict=True))
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bar:
        tasks = {
            name: bar.add_task(labels[name], total=steps, completed=done, numbers="no step is done yet")
            for name, (steps, done) in counts.items()
        }

        def show(name: str, step: Step) -> None:
            steps, done = counts[name]
            count, numbers = step.step + 1, f"KL {step.loss:.4f}  recall {step.recall:.1%}"
            bar.update(tasks[name], completed=count, numbers=numbers)
            if not console.is_terminal and (count in (done + 1, steps) or count % max(1, steps // LINES) == 0):
                label = f"{labels[name]}: " if labels[name] else ""
                console.print(f"{label}step {count} of {steps}: {numbers}", highlight=False)

        yield show
