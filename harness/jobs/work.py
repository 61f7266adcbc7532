"""What a worker of a sweep is handed, and what it hands back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Work:
    """What a worker is to do. jobs: the arguments of each job of the sweep; arguments: those of the command, as it was typed,
    which records name; given: the names of the settings in it; folder: where it was typed; environment: variables to set;
    launch: the id of the command, which all of its workers share."""

    jobs: Sequence[Sequence[str]]
    arguments: Sequence[str]
    given: Sequence[str]
    folder: str
    environment: dict[str, str]
    debug: bool = False
    launch: str = ""


@dataclass
class Outcome:
    """What a worker has done. code: its exit code; errors: the lines that it said of bad input and faults; studies: by folder,
    the margin and the ids of the arms that a report is due of; failures: what failed
    (`harness.measure.failures.FailureLog`)."""

    code: int = 0
    errors: list[str] = field(default_factory=list)
    studies: dict[str, tuple[float, list[str]]] = field(default_factory=dict)
    failures: dict[str, Any] = field(default_factory=dict)


def read_outcome(text: str) -> Outcome:
    """Return an outcome from its JSON."""
    raw: dict[str, Any] = json.loads(text)
    studies = {name: (margin, arms) for name, (margin, arms) in raw["studies"].items()}
    return Outcome(raw["code"], raw["errors"], studies, raw["failures"])
