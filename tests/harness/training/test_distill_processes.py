"""A step is the same however it is divided: into forward passes, into processes, and with the model's layers shared out."""

from __future__ import annotations

import gc
import os
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch import Tensor

from harness.core.errors import UserError
from harness.models.loading import LoadedModel, wrap_model
from harness.training.gates.processes import Processes, join, load_sharded
from harness.training.gates.recipe import Recipe
from harness.training.gates.training import Distilled
from methods.gates.attn_gate import AttnGate
from tests.harness.training.distilling import distill_one
from tests.harness.training.test_distill import BLOCK, sharp_llama, topics

RECIPE = Recipe(steps=3, block_size=BLOCK, warmup=2, lr=1e-2)
TOLERANCE = 1e-5
"""Of weights that begin at 0.02 and move by up to 0.03: sums in another order, and AdamW's division, no more."""


def four_rows() -> Iterator[Tensor]:
    """Steps of four rows."""
    stream = topics()
    while True:
        yield torch.cat([next(stream) for _ in range(4)])


def tiny(device: torch.device | None = None) -> LoadedModel:
    return wrap_model(sharp_llama(), None, name="tiny", revision="abc", device=device or "cpu")


def largest_difference(one: Path, two: Path) -> float:
    a, b = load_file(str(one)), load_file(str(two))
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Distilled:
    return distill_one(tiny(), four_rows(), RECIPE, out=tmp_path_factory.mktemp("alone"))


@pytest.mark.parametrize("micro_rows", [1, 3])
def test_micro_batches_make_the_same_step(alone: Distilled, tmp_path: Path, micro_rows: int) -> None:
    done = distill_one(tiny(), four_rows(), replace(RECIPE, micro_rows=micro_rows), out=tmp_path)
    assert largest_difference(alone.path, done.path) < TOLERANCE
    assert numbers(done) == [pytest.approx(step, rel=1e-5) for step in numbers(alone)]


def numbers(done: Distilled) -> list[list[float]]:
    """What AdamW doesn't show: a gradient twice as large moves the weights as much."""
    return [[step.loss, step.recall, step.grad_norm] for step in done.steps]


def _process(rank: int, port: int, out: Path, kind: str) -> None:
    """One of two processes: gates with the model whole, and with its layers shared. kind: of the device, cpu or cuda."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
    AcceleratorState._reset_state(reset_partial_state=True)  # of the process that this one is forked off, which ran alone
    processes = join(torch.device(kind))
    assert (processes.rank, processes.count) == (rank, 2)
    assert processes.device == torch.device(kind, rank) or kind == "cpu"
    done = distill_one(tiny(processes.device), four_rows(), RECIPE, out=out / "whole", processes=processes)
    torch.save(numbers(done), out / f"numbers-{rank}.pt")
    shared = load_sharded(tiny, processes)
    weight: Any = shared.model.model.layers[0].mlp.up_proj.weight
    assert weight.to_local().numel() * 2 == weight.numel()
    held_out = [next(topics(seed=9))]
    distill_one(shared, four_rows(), RECIPE, out=out / "shared", processes=processes, held_out=held_out)
    assert weight.to_local().numel() * 2 == weight.numel()  # and nothing stays gathered
    try:
        distill_one(tiny(processes.device), topics(), RECIPE, out=out / "odd", processes=processes)
    except UserError as error:
        assert "set job.tokens to a multiple of 1200" in str(error)
    else:
        raise AssertionError("one row for two processes was accepted")
    torch.distributed.destroy_process_group()


def start_two(out: Path, kind: str) -> None:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # torch and transformers take seconds to import: both are forked off this process, which has done so, or where CUDA, which
    # can't be forked, may be in use, off one server that has imported this module
    method = "forkserver" if torch.cuda.is_available() else "fork"
    if method == "forkserver":
        mp.get_context(method).set_forkserver_preload([__name__])
    mp.start_processes(_process, args=(port, out, kind), nprocs=2, start_method=method)


def test_two_processes_train_the_gates_of_one(alone: Distilled, tmp_path: Path) -> None:
    start_two(tmp_path, "cpu")
    assert largest_difference(alone.path, tmp_path / "whole" / alone.path.name) < TOLERANCE
    assert largest_difference(alone.path, tmp_path / "shared" / alone.path.name) < TOLERANCE
    first, second = (torch.load(tmp_path / f"numbers-{rank}.pt") for rank in (0, 1))
    assert first == second == [pytest.approx(step, rel=1e-5) for step in numbers(alone)]


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_train_the_gates_of_one(tmp_path: Path) -> None:
    """Over NCCL, with the Triton kernels, whose float32 products are the tensor cores' (TF32)."""
    one = distill_one(tiny(torch.device("cuda", 0)), four_rows(), RECIPE, out=tmp_path / "alone")
    start_two(tmp_path, "cuda")
    for kind in ("whole", "shared"):
        assert largest_difference(one.path, tmp_path / kind / one.path.name) < 1e-4
    first, second = (torch.load(tmp_path / f"numbers-{rank}.pt") for rank in (0, 1))
    assert first == second == [pytest.approx(step, rel=1e-4) for step in numbers(one)]


def test_one_process_has_nothing_to_share() -> None:
    with pytest.raises(UserError, match="one process has nothing to share"):
        load_sharded(tiny, Processes())


def test_only_one_layer_is_in_memory(tmp_path: Path) -> None:
    """When a layer's gate is asked, nothing of the layer before is left."""
    alive: list[int] = []
    logits_before: list[weakref.ref[Tensor]] = []

    class Watched(AttnGate):
        def forward(self, q: Tensor, k: Tensor, rope: Any) -> Tensor:
            gc.collect()
            alive.append(sum(ref() is not None for ref in logits_before))
            logits = super().forward(q, k, rope)
            logits_before.append(weakref.ref(logits))
            return logits

    loaded = tiny()
    gc.freeze()  # what there is by now is not looked through each time; thawing it would have all imports looked through later
    distill_one(loaded, topics(), Recipe(steps=2, block_size=BLOCK), out=tmp_path, kind=Watched)
    assert alive == [0, 0, 0, 0]
