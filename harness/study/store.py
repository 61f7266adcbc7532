"""The records of one study, and where its processes write them."""

from __future__ import annotations

from pathlib import Path

from harness.study.lines import Record
from harness.study.record_file import RecordFile
from harness.study.record_io import RecordError
from harness.study.study_file import StudyFile

__all__ = ("Record", "RecordError", "RecordFile", "Store", "StudyFile")


class Store:
    """The records of one study: a file of `folder/records/` for each kind, `KIND.jsonl`, and those of its parts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

        def file(kind: str) -> StudyFile:
            return StudyFile(folder / "records", kind)

        self.runs, self.samples, self.cells, self.latency = (file(k) for k in ("runs", "samples", "cells", "latency"))
        self.calibrations, self.mass, self.checks = (file(k) for k in ("calibrations", "mass", "checks"))
        self.perplexity, self.kernels, self.gate_steps = (file(k) for k in ("perplexity", "kernels", "gate_steps"))
        self.arm_densities, self.finetune_steps = file("arm_densities"), file("finetune_steps")

    def files(self) -> tuple[StudyFile, ...]:
        """Return all files of the study."""
        return (
            self.runs,
            self.samples,
            self.cells,
            self.latency,
            self.calibrations,
            self.mass,
            self.arm_densities,
            self.checks,
            self.perplexity,
            self.kernels,
            self.gate_steps,
            self.finetune_steps,
        )

    def measured(self) -> list[StudyFile]:
        """Return the files of what was measured: neither of processes nor of the steps of a training."""
        return [file for file in self.files() if file not in (self.runs, self.gate_steps, self.finetune_steps)]

    def samples_of(self) -> dict[str, list[Record]]:
        """Return the sample records by cell id, each list by sample index."""
        by_cell: dict[str, list[Record]] = {}
        for record in self.samples.read():
            by_cell.setdefault(record["cell"], []).append(record)
        for records in by_cell.values():
            records.sort(key=lambda r: r["index"])
        return by_cell

    def latest_cells(self) -> dict[str, Record]:
        """Return the last state of every cell, by cell id."""
        return {record["cell"]: record for record in self.cells.read()}
