"""Which records each file of a study holds, what is read of the objects in them, and the fields that identify a line."""

from __future__ import annotations

from harness.study.fields import ArmFields, CaseFields, CellFields, CellSummary, CheckFields
from harness.study.schema import (
    CalibrationRecord,
    CellRecord,
    CheckRecord,
    DensityRecord,
    FinetuneStepRecord,
    GateStepRecord,
    MassRecord,
    PerplexityRecord,
    RunRecord,
    SampleRecord,
)
from harness.study.timing_schema import KernelRecord, LatencyRecord

RECORDS: dict[str, type] = {
    "runs": RunRecord,
    "samples": SampleRecord,
    "cells": CellRecord,
    "latency": LatencyRecord,
    "calibrations": CalibrationRecord,
    "kernels": KernelRecord,
    "perplexity": PerplexityRecord,
    "mass": MassRecord,
    "arm_densities": DensityRecord,
    "checks": CheckRecord,
    "gate_steps": GateStepRecord,
    "finetune_steps": FinetuneStepRecord,
}
"""What a line of each file is. Fields without a default are in every record."""

NESTED: dict[str, dict[str, type]] = {
    "cells": {"identity": CellFields, "summary": CellSummary},
    "latency": {"identity": ArmFields},
    "calibrations": {"identity": ArmFields},
    "mass": {"identity": ArmFields},
    "arm_densities": {"identity": ArmFields},
    "checks": {"identity": CheckFields},
    "kernels": {"identity": CaseFields},
}
"""What is read of the objects in a line, by its field."""

KEYS: dict[str, tuple[str, ...]] = {
    "runs": ("run",),
    "samples": ("cell", "index"),
    "latency": ("latency",),
    "calibrations": ("calibration",),
    "mass": ("mass",),
    "arm_densities": ("arm_densities",),
    "checks": ("check",),
    "perplexity": ("cell", "index"),
    "gate_steps": ("training", "step"),
    "finetune_steps": ("training", "step"),
}
"""The fields that identify a line; a second line with the same key is never written. Cells and kernel cases have states
instead."""
