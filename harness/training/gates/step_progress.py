"""What a training of gates shows while it runs: a bar in a terminal, else a line now and then, and one a minute."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console

from harness.training.gates.checkpoint import Step

LINES = 20
"""Lines that are printed of a training where there is no terminal, and one of its first step."""

Show = Callable[[str, Any], None]
"""Takes the name of a training, and a step that it has done."""


def _loss_and_recall(step: Step) -> str:
    return f"KL {step.loss:.4f}  recall {step.recall:.1%}"


@contextmanager
def step_progress(
    counts: Mapping[str, tuple[int, int]],
    console: Console,
    *,
    trains: str = "gates",
    numbers_of: Callable[[Any], str] = _loss_and_recall,
) -> Iterator[Show]:
    """Show the numbers of each step, as `numbers_of` tells them: loss and recall of gates. What it yields is called with each.

    counts: steps of each training by its name, and how many a killed command has done; the name is shown where there are
    several. trains: what, before the bar.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

    from harness.core.progress import Description, progress_bar

    columns = (Description(), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[numbers]}"), TimeRemainingColumn())
    labels = dict(zip(counts, counts if len(counts) > 1 else ("",), strict=True))
    with progress_bar(console, True, *columns, transient=False) as bar:
        tasks = {
            name: bar.add_task(f"{trains} {labels[name]}".strip(), total=steps, completed=done, numbers="no step is done yet")
            for name, (steps, done) in counts.items()
        }

        def show(name: str, step: Any) -> None:
            steps, done = counts[name]
            count, said = step.step + 1, numbers_of(step)
            bar.update(tasks[name], completed=count, numbers=said)
            if not console.is_terminal and (count in (done + 1, steps) or count % max(1, steps // LINES) == 0):
                label = f"{labels[name]}: " if labels[name] else ""
                console.print(f"{label}step {count} of {steps}: {said}", highlight=False)

        yield show
