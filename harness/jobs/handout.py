"""How the jobs of a sweep go to its workers: each takes the next one when it is done with the one before.

What is taken and what is done lies in a folder that all workers see, a file each, which the first to make it holds: no locks,
which some file systems lack. So the jobs of a worker that is lost, or starts late, are those that it has taken; the others do
the rest. A job that a worker was lost in is given to no other: it may be what ended it. The same command runs it again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

OF_MODEL = ("model", "device", "dtype")
"""What a model is loaded by: jobs that agree in these, and in what is below them, share one."""
OF_ARM = ("method", "decode", "sparsity", "as_released", "block_size", "kernel", "decode_kernel", "knob_value")
"""What tells arms apart: jobs that agree in all else compare with the same dense rows."""
SIZES = ("length", "samples")
TAKEN, DONE = "taken", "done"


@dataclass(frozen=True)
class Job:
    """What is looked at of a job when the next one is chosen. model, prompts: what jobs of one model, and of the same dense
    rows, have in common; size: tokens of its prompts, as far as its arguments say."""

    model: tuple[str, ...]
    prompts: tuple[str, ...]
    size: float


def describe(arguments: Sequence[str]) -> Job:
    """Return what is looked at of a job, by its arguments."""
    model = tuple(sorted(argument for argument in arguments if _is_of(argument, OF_MODEL)))
    prompts = tuple(sorted(argument for argument in arguments if not _is_of(argument, OF_ARM)))
    size = 1.0
    for argument in arguments:
        name, _, value = argument.partition("=")
        if name in SIZES and value.isdecimal():
            size *= int(value)
    return Job(model, prompts, size)


def _is_of(argument: str, names: Sequence[str]) -> bool:
    name = argument.partition("=")[0].lstrip("+~")
    return name.partition(".")[0] in names


class Handout:
    """The jobs of a sweep in the folder `files` of its workers."""

    def __init__(self, files: Path, jobs: Sequence[Sequence[str]]) -> None:
        self.folder = files / "jobs"
        self.jobs = [describe(arguments) for arguments in jobs]

    def take(self, worker: int, held: tuple[str, ...] | None) -> int | None:
        """Take a job for a worker, which holds the model `held`; returns its position, None where none is left."""
        self.folder.mkdir(parents=True, exist_ok=True)
        refused: set[int] = set()
        while (number := self._next(held, refused)) is not None:
            try:
                with open(self._file(number, TAKEN), "x") as file:  # fails where another was faster
                    file.write(str(worker))
                return number
            except FileExistsError:
                refused.add(number)  # what a listing of a network's folder may not show yet
        return None

    def end(self, number: int) -> None:
        """Note that a job is done, whatever came of it."""
        self._file(number, DONE).touch()

    def in_hand(self, worker: int) -> list[int]:
        """Return the jobs that a worker has taken and not done."""
        return [number for number in sorted(self._all(TAKEN) - self._all(DONE)) if self._holder(number) == str(worker)]

    def left(self) -> list[int]:
        """Return the jobs that nobody has taken."""
        return sorted(set(range(len(self.jobs))) - self._all(TAKEN))

    def _next(self, held: tuple[str, ...] | None, refused: set[int]) -> int | None:
        """Return the job to take next: of the model that the worker holds, else of the one that the fewest are at; then one
        whose dense rows nobody measures just now, for which it would wait; then the largest, so that none is left for the
        end."""
        taken, done = self._all(TAKEN), self._all(DONE)
        running = [self.jobs[number] for number in taken - done]
        measured = {self.jobs[number].prompts for number in done}
        waited_for = {job.prompts for job in running} - measured

        def rank(number: int) -> tuple[int, bool, float, int]:
            job = self.jobs[number]
            at_model = 0 if job.model == held else 1 + sum(other.model == job.model for other in running)
            return at_model, job.prompts in waited_for, -job.size, number

        return min(set(range(len(self.jobs))) - taken - refused, key=rank, default=None)

    def _all(self, state: str) -> set[int]:
        return {int(path.stem) for path in self.folder.glob(f"*.{state}")}

    def _holder(self, number: int) -> str:
        return self._file(number, TAKEN).read_text()

    def _file(self, number: int, state: str) -> Path:
        return self.folder / f"{number:05}.{state}"
