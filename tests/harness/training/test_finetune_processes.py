"""Two processes fine-tune as one does: each has its rows of a step, and both end with the same weights."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from accelerate.state import AcceleratorState

from harness.core.errors import UserError
from harness.training.finetune.finetune import Finetuning
from harness.training.gates.processes import join
from tests.harness.tiny import tokens
from tests.harness.training.test_finetune import batches, start


def _process(rank: int, port: int, out: Path) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    AcceleratorState._reset_state(reset_partial_state=True)  # of the process that this one is forked off
    processes = join(torch.device("cpu"))
    training = start("seer", processes=processes)
    training.run(batches())
    torch.save(_ended(training), out / f"{rank}.pt")
    with pytest.raises(UserError, match=r"share equally: set job\.tokens to a multiple of 64"):
        start("dense", processes=processes).run(iter([tokens(1, 32)]))
    torch.distributed.destroy_process_group()


def _ended(training: Finetuning) -> tuple[list[torch.Tensor], list[float | None]]:
    weights = [weight.detach() for weight in training.weights + training.gate_weights]
    return weights, [number for step in training.steps for number in (step.loss, step.gate_loss, step.grad_norm, step.density)]


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA, which can't be forked, may be in use")
def test_two_processes_fine_tune_as_one(tmp_path: Path) -> None:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.start_processes(_process, args=(port, tmp_path), nprocs=2, start_method="fork")
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    alone = start("seer")
    alone.run(batches())
    weights, numbers = _ended(alone)
    assert all(torch.equal(one, two) for one, two in zip(first[0], second[0], strict=True)) and first[1] == second[1]
    assert first[1] == pytest.approx(numbers, rel=1e-3)
    for one, other in zip(first[0], weights, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=5e-4)
