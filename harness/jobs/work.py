"""What a worker of a sweep is handed, and what it hands back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Work:
    """What a worker is to do. number: its own; jobs: the arguments of each job of the sweep, of which it takes one after the
    other (`harness.jobs.handout`); arguments: those of the command, as it was typed, which records name; given: the names of
    the settings in it; folder: where it was typed; files: the folder of the workers' files; environment: variables to set;
    gpus: how many GPUs it must see; launch: the id of the command, which all of its workers share."""

    number: int
    jobs: Sequence[Sequence[str]]
    arguments: Sequence[str]
    given: Sequence[str]
    folder: str
    files: str
    environment: dict[str, str]
    gpus: int = 0
    debug: bool = False
    launch: str = ""

    @property
    def log(self) -> str:
        """Return the name of the file, in `files`, of what the worker prints."""
        return f"worker-{self.number}.log"


@dataclass
class Outcome:
    """What a worker has done. code: its exit code; errors: the lines that it said of bad input and faults; studies: by folder,
    the margin and the ids of the arms that a report is due of; failures: what failed
    (`harness.measure.failures.FailureLog`); lost: why it ended before its work did, "" where it did not; parts: the folders of
    the studies that it has written a part of."""

    code: int = 0
    errors: list[str] = field(default_factory=list)
    studies: dict[str, tuple[float, list[str]]] = field(default_factory=dict)
    failures: dict[str, Any] = field(default_factory=dict)
    lost: str = ""
    parts: list[str] = field(default_factory=list)


LOST = 1
"""The exit code where a worker was lost."""


def lost(reason: str) -> Outcome:
    """Return the outcome of a worker that ended before its work did."""
    return Outcome(code=LOST, lost=reason)


def read_outcome(text: str) -> Outcome:
    """Return an outcome from its JSON."""
    raw: dict[str, Any] = json.loads(text)
    studies = {name: (margin, arms) for name, (margin, arms) in raw["studies"].items()}
    return Outcome(raw["code"], raw["errors"], studies, raw["failures"], raw["lost"], raw["parts"])
