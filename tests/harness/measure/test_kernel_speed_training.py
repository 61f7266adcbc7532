"""The study of kernels in training: forward and backward timed as one, gradients checked, kernels without them refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from attention_kernels.block_index import BlockIndex
from rich.console import Console

from harness.measure.kernel_speed import inputs
from harness.measure.kernel_speed.cases import SHAPES, TRAINING
from harness.measure.kernel_speed.correctness import gradient_error
from harness.measure.kernel_speed.indices import random_index
from harness.measure.kernel_speed.inputs import Work
from harness.report.kernel_rows import kernel_rows
from harness.report.terminal.kernel_table import show_kernels
from harness.study.store import Store
from tests.harness.measure.kernel_study import Command, records, sparse_records, study
from tests.harness.measure.study_files import board

CPU = torch.device("cpu")
ONE: dict[str, Any] = {"phase": TRAINING, "lengths": [192], "sparsities": [0.5], "dense_kernels": ["sdpa"]}


def test_both_passes_are_timed_beside_dense_ones(tmp_path: Path) -> None:
    assert study(tmp_path, **{**ONE, "lengths": [640]}, last=[0, 2]) == 0
    rows = {(row.op, row.kernel, row.full_rows): row for row in kernel_rows(Store(tmp_path))}
    assert {row.phase for row in rows.values()} == {TRAINING}
    dense = rows["full", "sdpa", None]
    pairs = 640 * 641 / 2
    for kernel, full in (("sdpa", None), ("reference", None), ("sdpa", 1), ("reference", 1)):
        row = rows["sparse", kernel, full]
        assert row.error is not None and row.error < 1e-5 and row.dense_kernel == "sdpa"
        assert row.times.speedup and row.times.selection_ms and row.times.attention_ms
    console = Console(file=StringIO(), width=120)
    show_kernels(console, [*rows.values(), replace(dense, phase="prefill")])
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert text.count("threads), forward and backward\n") == 1 and text.count("threads)\n") == 1, "a table for each phase"
    assert {r["about"]["full_rows"] for r in records(tmp_path) if "last" in r["identity"]} == {"sdpa", "reference"}
    flop = {r["identity"]["op"]: r["flop"] for r in records(tmp_path)}
    assert flop["full"] == 3.5 * 4 * 64 * 4 * pairs and dense.error is not None and dense.error < 1e-5


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_wrong_gradient_is_held_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    real = Work.sparse

    def off(self: Work, kernel: str, index: BlockIndex) -> Callable[[], Any]:
        call = real(self, kernel, index)
        return lambda: [x * 1.1 if i == number else x for i, x in enumerate(call())]

    monkeypatch.setattr(Work, "sparse", off)
    assert study(tmp_path, **ONE, kernels=["sdpa"]) == 1
    (record,) = sparse_records(tmp_path).values()
    assert record["status"] == "gated" and record["reason"].startswith("relative error 0.1 ")


def test_a_kernel_without_a_backward_pass_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "dense_attention", lambda q, k, v, **_: torch.zeros_like(q))
    assert study(tmp_path, **ONE, kernels=["flex", "sdpa"]) == 0
    reasons = {(r["identity"]["op"], r["identity"]["kernel"]): (r["reason"], r["final"]) for r in records(tmp_path)}
    assert reasons["full", "sdpa"] == ("dense kernel sdpa has no backward pass", True)
    assert "kernel=flex can't run here: it has no backward pass" in reasons["sparse", "flex"][0]
    assert reasons["sparse", "sdpa"][0] == ""


def test_the_check_sees_what_is_not_finite_and_a_block_too_many() -> None:
    work = Work.draw(TRAINING, SHAPES["bundled"], 1, 200, dtype=torch.float32, device=CPU, seed=0)
    index, other = (
        random_index(batch=1, heads=2, q_len=200, k_len=200, block=32, sparsity=sparsity, seed=0, device=CPU)
        for sparsity in (0.5, 0.3)
    )
    good, bad = work.sparse("reference", index)(), work.sparse("reference", other)()
    assert work.grad is not None
    tensors = (work.q, work.k, work.v, work.grad, index)
    assert gradient_error(*tensors, good, scale=work.scale) < 1e-5 < 0.1 < gradient_error(*tensors, bad, scale=work.scale)
    good[3][0, 1, 40, 0] = float("nan")  # in no block that is compared
    assert gradient_error(*tensors, good, scale=work.scale) == float("inf")


@pytest.mark.gpu
def test_every_backward_pass_of_a_gpu_answers_right(command: Command, tmp_path: Path) -> None:
    settings = ["job.lengths=[2048]", "job.shape=llama3_8b", "job.indices=[uniform,uniform_shared]", "latency_repeats=1"]
    assert command("experiment=training_speed", "study=speed", "device=cuda", *settings) == 0
    rows = board(tmp_path / "results" / "speed")
    assert {r["status"] for r in rows if r["kernel"] == "triton"} == {"ok"}
    assert not [r["reason"] for r in rows if r["status"] == "gated"]
