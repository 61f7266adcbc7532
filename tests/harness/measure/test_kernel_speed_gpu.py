"""The study of kernels on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from attention_kernels.block_index import BlockIndex

from harness.measure.kernel_speed.inputs import Work
from tests.harness.measure.kernel_study import DECODE, SMALL, Command
from tests.harness.measure.study_files import board


@pytest.mark.gpu
def test_a_kernel_that_writes_nothing_is_held_back(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Work.sparse

    def idle(self: Work, kernel: str, index: BlockIndex) -> Callable[[], Any]:
        return (lambda: torch.empty_like(self.q)) if kernel == "sdpa" else real(self, kernel, index)

    monkeypatch.setattr(Work, "sparse", idle)
    arguments = [
        "device=cuda",
        "job.shape=llama3_8b",
        "job.kernels=[triton,sdpa]",
        "job.lengths=[2048]",
        "job.sparsities=[0.5]",
    ]
    assert command(*SMALL, *arguments) == 1
    rows = {r["kernel"]: r["status"] for r in board(tmp_path / "results" / "speed") if r["op"] == "sparse"}
    assert rows == {"triton": "ok", "sdpa": "gated"}


@pytest.mark.gpu
def test_calls_of_decoding_are_replayed_as_graphs(command: Command, tmp_path: Path) -> None:
    arguments = ["device=cuda", "job.shape=llama3_8b", "job.kernels=[triton]", "job.lengths=[4096]"]
    assert command(*DECODE, *arguments) == 0
    rows = [r for r in board(tmp_path / "results" / "speed") if r["status"] == "ok"]
    assert {r["op"] for r in rows} == {"full", "sparse"} and {r["timing"] for r in rows} == {"graph"}


@pytest.mark.gpu
def test_every_kernel_of_a_gpu_answers_right(command: Command, tmp_path: Path) -> None:
    arguments = ["device=cuda", "job.shape=llama3_8b", "job.kernels=auto", "job.lengths=[2048]", "job.blocks=[64,128]"]
    assert command(*SMALL, *arguments, "job.selections=[seer]", "job.indices=[uniform,uniform_shared,seer]") == 0
    rows = board(tmp_path / "results" / "speed")
    assert {r["status"] for r in rows if r["kernel"] == "triton"} == {"ok"}
    assert not [r["reason"] for r in rows if r["status"] == "gated"]
