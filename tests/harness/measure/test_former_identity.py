"""Rows that were recorded by the bytes of a file of gates are found again by an arm with the same file."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

from harness.arms.build import RunnableArm
from harness.measure.former_identity import as_recorded
from harness.study.identity import ArmIdentity, Decoding, Setting
from harness.study.store import Store

RESULTS = Path(__file__).resolve().parents[3] / "results"


def test_a_published_study_knows_its_gates(tmp_path: Path) -> None:
    """Its rows are among the oldest there are: of fewer knobs than today's."""
    store = Store(RESULTS / "bundled_cpu")
    recorded = next(cell["identity"] for cell in store.cells.read() if cell["identity"]["method"] == "seer")
    setting = Setting(**{field.name: recorded[field.name] for field in fields(Setting) if field.name in recorded})
    former = ArmIdentity(
        setting,
        "seer",
        recorded["sparsity"],
        {"threshold": 0.5},
        recorded["block_size"],
        recorded["kernel"],
        recorded["weights_hash"],
    )
    arm = RunnableArm(replace(former, weights_hash="of the tensors"), None, former=former)
    assert as_recorded(store, arm).identity == former
    for other in (
        replace(former, kernel="triton"),
        replace(former, weights_hash="of another file"),
        replace(former, decode=Decoding("seer_r", {}, "reference", "of its file")),
    ):
        assert as_recorded(store, replace(arm, former=other)).identity == arm.identity
    assert as_recorded(Store(tmp_path), arm) is arm
    assert as_recorded(store, replace(arm, former=None)).identity == arm.identity
