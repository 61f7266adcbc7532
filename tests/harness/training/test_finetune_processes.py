"""Two processes fine-tune as one does: each has its rows of a step, with the model whole or its layers shared (FSDP)."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.multiprocessing as mp
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor

from harness.core.errors import UserError
from harness.training.finetune.finetune import Finetuning
from harness.training.finetune.saved_model import save
from harness.training.finetune.sharded import whole
from harness.training.gates.checkpoint import Checkpoint
from harness.training.gates.processes import Processes, join, load_sharded
from tests.harness.tiny import load, tokens
from tests.harness.training.test_finetune import Killed, batches, dies_at, start


def _process(rank: int, port: int, out: Path) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    AcceleratorState._reset_state(reset_partial_state=True)  # of the process that this one is forked off
    processes = join(torch.device("cpu"))
    training = start("seer", processes=processes)
    training.run(batches())
    torch.save(_ended(training), out / f"{rank}.pt")
    shared = _sharded(processes, out, killed_after=1)
    torch.save(_ended(shared), out / f"shared-{rank}.pt")
    shared.loaded = replace(shared.loaded, tokenizer=SimpleNamespace(save_pretrained=lambda _: None))
    save(shared, out / "model", {"name": "toy"}, None)
    with pytest.raises(UserError, match=r"share equally: set job\.tokens to a multiple of 64"):
        start("dense", processes=processes).run(iter([tokens(1, 32)]))
    torch.distributed.destroy_process_group()


def _sharded(processes: Processes, out: Path, *, killed_after: int) -> Finetuning:
    """Train a model whose layers are shared, killed after a step and gone on with; return it at its end."""
    checkpoint = Checkpoint(out / "state", every=1, about={"model": "toy"})
    for dies in (True, False):
        loaded = load_sharded(lambda: load("llama"), processes)
        training = start("seer", checkpoint, processes=processes, loaded=loaded)
        if processes.main and dies:
            checkpoint.begin()
        processes.wait()
        if dies:
            with pytest.raises(Killed):
                training.run(batches(), on_step=dies_at(killed_after))
        else:
            assert len(training.steps) == killed_after and _is_divided(training)
            training.run(batches())
    return training


def _is_divided(training: Finetuning) -> bool:
    """Tell whether this process has half of the weights and moments of each layer."""
    weight = training.loaded.model.model.layers[0].mlp.up_proj.weight
    parts = [weight, training.optimizer.state[weight]["exp_avg"]]
    return all(isinstance(part, DTensor) and part.to_local().numel() * 2 == part.numel() for part in parts)


def _ended(training: Finetuning) -> tuple[list[torch.Tensor], list[float | None]]:
    weights = whole([weight.detach() for weight in training.weights + training.gate_weights], keep=True)
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
    shared, other = (torch.load(tmp_path / f"shared-{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(one, two) for one, two in zip(shared[0], other[0], strict=True)) and shared[1] == other[1]
    assert shared[1] == pytest.approx(first[1], rel=1e-5)
    for one, two in zip(shared[0], first[0], strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
    by_name = dict(zip(dict(alone.loaded.model.named_parameters()), shared[0], strict=False))
    saved = load_file(str(tmp_path / "model" / "model.safetensors"))
    assert all(torch.equal(saved[name], by_name[name]) for name in saved)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    state = torch.load(tmp_path / "state", weights_only=True)  # as one process has it, which could go on with it
    assert all(type(moment) is torch.Tensor for moments in state["optimizer"]["state"].values() for moment in moments.values())
    assert all(torch.equal(one, two) for one, two in zip(first[0], second[0], strict=True)) and first[1] == second[1]
    assert first[1] == pytest.approx(numbers, rel=1e-3)
    for one, other in zip(first[0], weights, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=5e-4)
