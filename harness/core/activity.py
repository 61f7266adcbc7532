"""What this process works on now, for whoever looks from outside: lines where no bar can be, and the state of a sweep.

There is one `Activity` a process. Whoever works sets it, which costs nothing; others read it from threads of their own.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

MINUTE = 60.0
"""Seconds between two lines of progress where there is no terminal."""


@dataclass
class Activity:
    """What is done now. text: its name, such as an arm; length: of its prompts in tokens, None where it has none; task: of the
    next sample; done and total: of its units (samples, documents, steps, cases), of which `first` were done before; since and
    moved: when it began and when the last unit was done, in seconds of time.time. job: which of the jobs of this process, from
    1, and how many there are; (0, 0) where it is the only one. cells: the samples done of each open cell, by id, and how many
    each lacked."""

    text: str = ""
    length: int | None = None
    task: str = ""
    done: int = 0
    total: int = 0
    first: int = 0
    since: float = 0.0
    moved: float = 0.0
    job: tuple[int, int] = (0, 0)
    cells: dict[str, list[int]] = field(default_factory=dict)

    def begin(self, text: str, total: int = 0, done: int = 0) -> None:
        """Note that something begins; the open cells stay open."""
        self.text, self.total, self.done, self.first, self.length, self.task = text, total, done, done, None, ""
        self.since = self.moved = time.time()

    def open_cells(self, length: int, lacking: Mapping[str, int]) -> None:
        """Note the cells that are worked on, by id, and how many samples each lacks."""
        self.length, self.cells = length, {cell: [0, count] for cell, count in lacking.items()}

    def count(self, cells: Iterable[str]) -> None:
        """Note that a sample of each of these cells is done."""
        for cell in cells:
            if cell in self.cells:
                self.cells[cell][0] += 1

    def move(self, text: str, done: int, total: int, first: int) -> None:
        """Note how many units of what are done by now."""
        self.text, self.done, self.total, self.first, self.moved = text, done, total, first, time.time()

    def close_cells(self) -> None:
        """Note that no cell is worked on any more."""
        self.cells = {}

    def end(self) -> None:
        """Note that nothing is done that is worth a name; the number of the job stays."""
        self.begin("")
        self.close_cells()


CURRENT = Activity()
"""That of this process."""
OVERALL: list[Callable[[], str]] = []
"""What tells, in a few words, how far all jobs of the command are; the last one is asked. Empty where nobody knows."""


@contextmanager
def every(seconds: float, act: Callable[[], object]) -> Iterator[None]:
    """Call `act` every so many seconds from a thread of its own, as long as the block runs. What `act` raises is not raised
    anywhere: nothing that only tells of the work may end it."""
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(seconds):
            with suppress(Exception):
                act()

    thread = threading.Thread(target=run, name="tells of progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=seconds)


def duration(seconds: float) -> str:
    """Return a time in its largest unit, as people say it: "40 s", "12 min", "3.5 h", "2.1 days"."""
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    if seconds < 59.5 * 60:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.1f} days"


def pace(done: int, total: int, first: int, seconds: float) -> str:
    """Return how fast something goes on, and when it will be done: "8.1 s each, 4 min left"; that nothing is done yet, and
    for how long, where that is so. first: units that were done before these seconds."""
    if done <= first or seconds <= 0:
        return f"none in {duration(max(0.0, seconds))}"
    each = seconds / (done - first)
    rate = f"{each:.1f} s each" if each >= 1 else f"{1 / each:.1f} a second"
    return f"{rate}, {duration(each * (total - done))} left" if total > done else rate
