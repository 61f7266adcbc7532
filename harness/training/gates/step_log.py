"""The steps of trainings as records of their study: a line a step, in records/gate_steps.jsonl or the file of another kind, and
the process in runs.jsonl."""

from __future__ import annotations

from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from harness.study.provenance import now, run_record
from harness.study.record_files import RECORDS
from harness.study.store import Store


class StepLog:
    """Appends every step it is called with; one that a killed run recorded after its last checkpoint is not written twice.

    kind: of the records, of harness.study.record_files.
    """

    def __init__(self, folder: Path, device: torch.device, kind: str = "gate_steps") -> None:
        self.kind, self.store, self.device = kind, Store(folder), device
        self.file = next(file for file in self.store.files() if file.kind == kind)
        self.file.read()  # a corrupt record stops the command before the training, not after

    @cached_property
    def run(self) -> str:
        """Return the name of this process in the records; it is written when the first step needs it."""
        run = run_record(self.device)
        self.store.runs.append(run)
        return run.run

    def __call__(self, training: str, about: dict[str, Any], step: Any) -> None:
        """Append a step, a dataclass, of the training of this name; about: its settings, written with its first step."""
        record = RECORDS[self.kind](
            training=training, run=self.run, date=now(), about=about if step.step == 0 else None, **asdict(step)
        )
        self.file.append(record)
