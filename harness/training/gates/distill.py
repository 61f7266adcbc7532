"""Train the gates of a method for a frozen model, from its own attention (SeerAttention, arXiv 2410.13276, and -R, 2506.08889).

One forward pass trains the gates of all layers: a gate sees its layer's queries and keys while the pass is there, and its
gradient is taken at once, so that only one layer's attention map is in memory at a time. Nothing flows back into the
model, which stays as it is. With several processes each has its rows of a step, and only the gates' gradients travel.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.core.errors import UserError
from harness.models.loading import LoadedModel, local_layers
from harness.training.gates.capture import Capture
from harness.training.gates.checkpoint import Checkpoint, Step, restore
from harness.training.gates.processes import Processes
from harness.training.gates.recall import Recall, gate_recall, mean_recall
from harness.training.gates.recipe import Recipe
from harness.training.gates.step_graph import PassGraphs
from harness.training.gates.trainer import GateTrainer
from harness.training.gates.weights import new_gates, save_gates, saved_dtype
from methods.gates.attn_gate import AttnGate
from methods.gates.gate import Gate


@dataclass(frozen=True)
class Distilled:
    """The result of a training.

    path: of the gates' file. parameters: of the gates in the file. recall: on the held-out sequences, of the weights as
    saved. seconds: of this call, without what was done before a restart.
    """

    path: Path
    gates: list[Gate]
    steps: list[Step]
    recall: list[Recall]
    parameters: int
    seconds: float


def distill(
    loaded: LoadedModel,
    tokens: Iterator[Tensor],
    recipe: Recipe,
    *,
    out: Path,
    held_out: Sequence[Tensor] = (),
    kind: type[Gate] = AttnGate,
    file: str = "gates-{block_size}.safetensors",
    on_step: Callable[[Step], None] | None = None,
    checkpoint: Checkpoint | None = None,
    processes: Processes | None = None,
    about: dict[str, Any] | None = None,
    cuda_graph: bool = False,
) -> Distilled:
    """Train one gate per layer on a batch of `tokens` ([N] or [B,N] int64) a step; save them into folder `out`.

    tokens: the batches of all processes together, the same in each, from the first step on (where a checkpoint is found,
    those that it has seen are drawn and dropped). held_out: sequences on which recall is measured at the end. kind: of
    gate. The file is named by the pattern `file`, with how it was trained, and `about`, in its metadata; the first of several
    `processes` writes it. on_step: called after each step, in every process. checkpoint: stays there when all is done, for
    the caller to remove once nothing of the training is left to write. cuda_graph: whether passes are replayed
    (`harness.training.gates.step_graph`).
    Raises UserError where `tokens` ends early, or rows can't be shared among the processes.
    """
    began = time.perf_counter()
    processes = processes or Processes()
    options = {"q_linear": True} if recipe.q_linear else {}
    gates = new_gates(loaded, kind, block_size=recipe.block_size, seed=recipe.seed, **options)
    weights = [weight for gate in gates for weight in gate.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=recipe.lr, weight_decay=recipe.weight_decay)
    state = checkpoint.read() if checkpoint is not None else None
    history = restore(state, gates, optimizer) if state is not None else []
    processes.agree(len(history))
    if len(history) < recipe.steps:  # a random source is where it was once the same rows are drawn again
        for step in range(len(history)):
            _next(tokens, step, recipe.steps)
    seen = history[-1].tokens if history else 0
    trainer = GateTrainer(loaded, gates, recipe, processes)
    with Capture(loaded.model, trainer.visit) as capture:

        def eager_pass(part: Tensor) -> Tensor:
            capture.run(part)
            return trainer.end_pass()

        one_pass = PassGraphs(eager_pass, lambda: trainer.weight, loaded) if cuda_graph else eager_pass
        batch = _next(tokens, len(history), recipe.steps) if len(history) < recipe.steps else None
        for number in range(len(history), recipe.steps):
            started = time.perf_counter()
            assert batch is not None  # drawn for every step there is
            seen += batch.numel()
            rate = recipe.lr * recipe.rate(number)
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad(set_to_none=not cuda_graph)  # a graph adds to the gradients that it was captured with
            for part in trainer.parts(batch):
                trainer.add(one_pass(part.to(loaded.device)))
            # while a GPU is still at it, the host has time to draw text
            batch = _next(tokens, number + 1, recipe.steps) if number + 1 < recipe.steps else None
            loss, recall, norm = trainer.finish(number)
            optimizer.step()
            seconds = time.perf_counter() - started
            history.append(Step(step=number, loss=loss, recall=recall, lr=rate, tokens=seen, grad_norm=norm, seconds=seconds))
            if on_step is not None:
                on_step(history[-1])
            if checkpoint is not None and processes.main and checkpoint.due(number + 1, recipe.steps):
                checkpoint.save(gates, optimizer, history)
    if not all(bool(weight.isfinite().all()) for weight in weights):
        raise UserError(
            f"step {recipe.steps} of {recipe.steps}: the gates are not finite any more: lower lr. None were written"
        )
    for gate in gates:
        gate.requires_grad_(False)
    trained = {layer for layer, gate in enumerate(gates) if any(w in optimizer.state for w in gate.parameters())}
    local = local_layers(loaded) - trained  # those whose window held the text of a step have something to save
    parameters = sum(w.numel() for layer, gate in enumerate(gates) if layer not in local for w in gate.parameters())
    dtype = saved_dtype(recipe.dtype, parameters)
    for weight in weights:
        weight.data = weight.data.to(dtype).float()  # recall below is that of the file
    recalls = gate_recall(loaded, gates, held_out) if held_out else []
    path = out / file.format(block_size=recipe.block_size)
    if processes.main:
        metadata = {
            **(about or {}),
            **asdict(recipe),
            "tokens": seen,
            "processes": processes.count,
            "model": loaded.name,
            "model_hash": loaded.revision_hash,
            "model_dtype": str(loaded.dtype).removeprefix("torch."),
            "loss": history[-1].loss,
            "recall": mean_recall(recalls),
        }
        save_gates(gates, path, dtype=dtype, recipe=metadata, local=local)
    processes.wait()
    return Distilled(path, gates, history, recalls, parameters, time.perf_counter() - began)


def _next(tokens: Iterator[Tensor], step: int, steps: int) -> Tensor:
    """Return the next batch, [B,N]. Raises UserError where the text ended."""
    try:
        return torch.atleast_2d(next(tokens))
    except StopIteration:
        raise UserError(f"the text ended after {step} of {steps} steps: give more text, or fewer steps") from None
