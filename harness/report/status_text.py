"""What a terminal, or whatever reads a pipe, is told of how far a study is."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.core.activity import duration
from harness.core.partial_files import host_id
from harness.core.printable import printable
from harness.report.status import Stage, StudyStatus, silent_for, tail, units_of
from harness.study.planned import OF_CELLS, UNITS
from harness.study.running import State

NUMBERS = 30
"""Characters that the columns of numbers take in the table of processes."""
MOST_FAILURES = 10
"""Failed cells that are shown, the latest; of the others it is said how many there are."""


def print_status(status: StudyStatus, console: Console, lines: int) -> None:
    """Print how far a study is: counts, how long it will take, a line a worker, and failures with their last `lines`."""
    for text in (f"study={status.store.folder.name}: {headline(status)}", f"{counts(status)}"):
        console.print(text, highlight=False, soft_wrap=True)
    if text := time_left(status):
        console.print(text, highlight=False, soft_wrap=True)
    if status.processes:
        console.print(_workers(status, console.width), highlight=False)
    for line in _deaths(status, lines):
        _line(console, line)
    for line in _failures(status, lines):
        _line(console, line)


def headline(status: StudyStatus) -> str:
    """Return who works on a study."""
    alive, dead = len(status.alive), len(status.processes) - len(status.alive)
    died = f"{dead} {'process' if dead == 1 else 'processes'} died: the same command carries on" if dead else ""
    if not alive:
        return died or "nothing runs"
    workers = f"running in {status.workers} {'process' if status.workers == 1 else 'processes'}"
    return f"{workers}; {died}" if died else workers


def counts(status: StudyStatus) -> str:
    """Return how many cells and units are done, and what is with the others."""
    done, count = units_of(status.items)
    cells = [item for item in status.items if item.planned.kind in OF_CELLS]
    parts = [f"{sum(i.stage == Stage.DONE for i in cells):,} of {len(cells):,} cells done"] if cells else []
    parts += [f"{done[kind]:,} of {count[kind]:,} {UNITS[kind][count[kind] != 1]}" for kind in count if count[kind]]
    others = [
        f"{n} {stage}" for stage in (Stage.RUNNING, Stage.FAILED, Stage.STOPPED, Stage.TO_COME) if (n := status.count(stage))
    ]
    said = "; ".join(filter(None, (", ".join(parts), ", ".join(others))))
    return said or _steps(status) or "no cells are recorded"


def _steps(status: StudyStatus) -> str:
    """Return what a study of training has recorded; "" for any other."""
    steps = [*status.store.gate_steps.read(), *status.store.finetune_steps.read()]
    trainings = len({record["training"] for record in steps})
    of_trainings = f"{trainings:,} {'training' if trainings == 1 else 'trainings'}"
    return f"no cells; {of_trainings}, at step {max(record['step'] for record in steps):,} at most" if steps else ""


def time_left(status: StudyStatus) -> str:
    """Return how long what is left will take; "" where nobody works on it, or nothing is planned."""
    expected = status.expected
    if expected is None or not status.items:
        return ""
    lengths = ", ".join(f"{length:,}" for length in sorted({planned.length for planned in expected.unknown}))
    missing = f"no rate measured yet at {lengths} tokens" if lengths else ""
    if missing and not expected.studies:
        return f"time left: {missing}"
    shared = f" in {status.workers} processes" if status.workers > 1 else ""
    text = f"about {duration(expected.seconds / max(1, status.workers))} left{shared}"
    return f"{text}, and what has {missing}" if missing else text


def summary_line(status: StudyStatus) -> str:
    """Return how far a study is, in one line."""
    return "; ".join(filter(None, (counts(status), time_left(status))))


def _workers(status: StudyStatus, width: int) -> Table:
    """Return a table of the processes: host and number, what each does, how far that is. width: characters of a line."""
    names = [len(f"{state.host} {state.pid}") for state in status.processes]
    most = max(20, width - max(names) - NUMBERS)
    table = Table(box=None, pad_edge=False, expand=False)
    for name in ("process", "does", "done", "for", "left"):
        justify: Literal["left", "right"] = "left" if name in ("process", "does") else "right"
        table.add_column(name, no_wrap=True, overflow="ellipsis", justify=justify)
    arms = {item.cell["cell"]: item for item in status.items if item.cell is not None}
    for state in status.processes:
        doing = state.doing
        item = next((arms[cell] for cell in doing.cells if cell in arms), None)
        text = doing.text if item is None else item.label(doing.task)
        if doing.job[1] > 1 and text:
            text = f"{text} (job {doing.job[0]} of {doing.job[1]})"
        if state.workers:
            text = f"waits for {state.workers} workers"
        if not state.is_alive:
            text = f"died{': ' if text else ''}{text}"
        done = f"{doing.done} of {doing.total}" if doing.total and not state.workers else ""
        since = doing.since if doing.text and not state.workers else state.began
        passed = max(0.0, (time.time() if state.is_alive else state.wrote) - since)
        new = doing.done - doing.first
        left = duration(passed / new * (doing.total - doing.done)) if done and new > 0 and state.is_alive else ""
        process = Text(printable(f"{state.host} {state.pid}"))
        table.add_row(process, Text(_short(printable(text or "prepares"), most)), done, duration(passed), left)
    return table


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _deaths(status: StudyStatus, lines: int) -> Iterator[str]:
    """Yield what is known of processes that died, with the last lines of what they printed."""
    for state in status.processes:
        if not state.is_alive:
            yield f"{state.host} {state.pid} died: {_why_dead(state)}"
            for line in tail(state.log, lines):
                yield f"  {line}"


def _why_dead(state: State) -> str:
    silent = f"it last wrote {duration(silent_for(state))} ago"
    return f"no such process on this host, {silent}" if state.host_id == host_id() else f"{silent}, on another host"


def _failures(status: StudyStatus, lines: int) -> Iterator[str]:
    """Yield the cells that failed, the latest last, each with the last lines of its failure."""
    failed = [item for item in status.items if item.stage == Stage.FAILED and item.cell is not None]
    failed.sort(key=lambda item: item.cell["date"] if item.cell is not None else "")
    if len(failed) > MOST_FAILURES:
        yield f"{len(failed) - MOST_FAILURES} earlier failures are not shown"
    for item in failed[-MOST_FAILURES:]:
        assert item.cell is not None
        yield f"failed: {item.label()}: {item.cell['reason']}"
        shown = [line for line in item.cell.get("traceback", "").splitlines() if line.strip()]
        for line in shown[len(shown) - min(lines, len(shown)) :]:
            yield f"  {line}"


def _line(console: Console, text: str) -> None:
    """Print a line, cut where the terminal ends, and whole where there is none."""
    if console.is_terminal:
        console.print(text, highlight=False, no_wrap=True, overflow="ellipsis", crop=True)
    else:
        console.print(text, highlight=False, soft_wrap=True)
