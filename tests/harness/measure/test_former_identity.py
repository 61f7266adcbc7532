"""Rows that were recorded by the bytes of a file of gates are found again by an arm with the same file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from harness.arms.build import build_arms
from harness.measure.former_identity import as_recorded
from harness.measure.sweep import load_quietly
from harness.models.loading import BUNDLED, ModelConfig
from harness.study.provenance import file_hash
from harness.study.store import Store
from tests.harness.settings import composed

RESULTS = Path(__file__).resolve().parents[3] / "results"


def test_a_published_study_knows_the_gates_that_ship(tmp_path: Path) -> None:
    """Its rows are among the oldest there are: of fewer knobs than today's."""
    config = ModelConfig(name="bundled", path="bundled", dtype=torch.float32, device=torch.device("cpu"))
    settings = composed("device=cpu", "kernel=reference", "method=seer", "sparsity=0.95", "length=4096")
    arm = build_arms(settings, load_quietly(config))[-1]
    store = Store(RESULTS / "bundled_cpu")
    resumed = as_recorded(store, arm)
    assert resumed.identity.weights_hash == file_hash(BUNDLED / "gates-64.safetensors") != arm.identity.weights_hash
    assert resumed.identity == arm.former and resumed.method is arm.method
    other = replace(arm, former=replace(arm.former, kernel="triton"))  # type: ignore[type-var]
    assert as_recorded(store, other) is other and as_recorded(Store(tmp_path), arm) is arm
    baseline = build_arms(settings, load_quietly(config))[0]
    assert as_recorded(store, baseline) is baseline
