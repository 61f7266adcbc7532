"""What failed in a command, kept for the table at its end; and of which kind an error is."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from harness.core.errors import NotFiniteError, UserError, WeightsError
from harness.core.time_limit import TimeIsUp
from harness.study import failures as kinds


@dataclass(frozen=True)
class Failure:
    """One thing that failed: its arm, what of it (a task, say), the name of its kind, and the reason in a line. tried: whether
    this command has tried it."""

    arm: str
    what: str
    kind: str
    reason: str
    tried: bool = True


@dataclass
class FailureLog:
    """What failed in one command, by the id of the cell, or of what else was measured. launch: the id of the command, which
    its workers share; sweeps: whether it runs several jobs; unpaired: cells that have no dense attention to be compared with,
    as that failed, by id; lost: why the device takes no more work of this process, empty where it does; skipped: how many jobs
    were not begun for that."""

    launch: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    sweeps: bool = False
    failed: dict[str, Failure] = field(default_factory=dict)
    unpaired: dict[str, str] = field(default_factory=dict)
    lost: str = ""
    skipped: int = 0

    def add(self, key: str, failure: Failure) -> int:
        """Note a failure. Returns 1, the count of it."""
        self.failed[key] = failure
        return 1

    def as_dict(self) -> dict[str, Any]:
        """Return all of it as JSON can hold it."""
        return asdict(self)

    def join(self, other: Mapping[str, Any]) -> None:
        """Take over what failed in a worker, as its `as_dict` has it."""
        self.failed |= {key: Failure(**failure) for key, failure in other.get("failed", {}).items()}
        self.unpaired |= other.get("unpaired", {})
        self.lost = self.lost or other.get("lost", "")
        self.skipped += other.get("skipped", 0)


def kind_of(error: BaseException) -> kinds.FailureKind:
    """Return the kind of an error."""
    from harness.core.device_memory import is_device_error, is_out_of_memory  # which import torch

    if isinstance(error, TimeIsUp):
        return kinds.TIME_OUT
    if isinstance(error, NotFiniteError):
        return kinds.NOT_FINITE
    if isinstance(error, WeightsError):
        return kinds.WEIGHTS
    if is_out_of_memory(error):
        return kinds.MEMORY
    if is_device_error(error):
        return kinds.DEVICE
    return kinds.INPUT if isinstance(error, UserError) else kinds.ERROR
