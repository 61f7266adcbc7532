"""Studies with records of every kind, made up: one of models, which has trained gates too, and one of kernels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from harness.study.identity import Cell, Samples
from harness.study.schema import (
    CalibrationRecord,
    CellRecord,
    CheckRecord,
    DensityRecord,
    GateStepRecord,
    MassRecord,
    PerplexityRecord,
    RunRecord,
    Status,
)
from harness.study.store import Store
from harness.study.timing_schema import KernelRecord
from tests.harness.report.support import DATE, DENSE, SPARSE, record_cell, record_times

KERNEL_CASE = {
    "op": "sparse",
    "length": 4096,
    "batch": 1,
    "kernel": "reference",
    "method": "uniform",
    "block": 64,
    "sparsity": 0.9,
    "index": "uniform",
    "selection": "",
    "phase": "prefill",
    "shape": "bundled",
    "heads": 4,
    "kv_heads": 2,
    "head_dim": 64,
    "dtype": "float32",
    "seed": 0,
}


def record_models(folder: Path) -> Store:
    """Record accuracies of dense attention and of a method, with everything else that can be measured of it."""
    store = Store(folder)
    dense = replace(DENSE, sparsity=None)
    for arm, scores in ((dense, [1.0, 1.0]), (SPARSE, [1.0, 0.0])):
        text = Cell(arm, Samples("perplexity", "1", {"text": "pydoc"}, False))
        record_cell(store, arm, "vt", scores, summary={"samples": 2})
        store.cells.append(
            CellRecord(text.id, arm.id, text.pair, "r1", text.as_dict(), Status.OK, "", DATE, arm.knobs, "pydoc")
        )
        for index in range(2):
            document = PerplexityRecord(
                text.id, "r1", index, "d", 9, 20.0, 10, 0.1, 0.1, 0.1, ["reference"], Status.OK, "", DATE
            )
            store.perplexity.append(document)
    record_times(store, SPARSE)
    identity = SPARSE.as_dict()
    check = identity | {"chat_template": False}
    store.checks.append(CheckRecord("k", SPARSE.id, "r1", check, Status.OK, "", {"zero": [0.0, 0.1]}, 99, 0.5, 1.0, DATE))
    store.calibrations.append(CalibrationRecord("b", "r1", identity, "width", 3.0, 0.1, 0.1, [0.1, 0.1], 4, DATE))
    tasks = {"vt": 0.1}
    store.arm_densities.append(DensityRecord("e", SPARSE.id, "r1", identity, SPARSE.knobs, 0.1, tasks, [0.1], 2, 1.0, DATE))
    store.mass.append(MassRecord("m", SPARSE.id, "r1", identity, SPARSE.knobs, 2, 4000.0, [0], [[0.9, 0.8]], [0.1], DATE))
    store.gate_steps.append(GateStepRecord("t", "r1", 0, 0.5, 0.5, 0.1, 9, 1.0, 0.1, {"seed": 0}, DATE))
    return store


def record_kernels(folder: Path) -> Store:
    """Record one case of a study of kernels."""
    store = Store(folder)
    store.runs.append(RunRecord("r1", DATE, "python -m harness", "c0ffee", {"torch": "2"}, "cpu (x)", "cpu", 1))
    times = {"attention": [1.0, 0.9, 1.1, 5.0], "total": [2.0, 1.9, 2.1, 5.0]}
    case = KernelRecord(
        "c", "r1", KERNEL_CASE, "cpu (x)", Status.OK, "", DATE, times, 0.1, 1e9, None, 64, 64, 1e-3, 4.0, "sdpa"
    )
    store.kernels.append(case)
    return store
