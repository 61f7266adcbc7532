"""One training of gates: what it is, how far it is, and what its end gives. Several may learn from the same forward passes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.models.loading import LoadedModel, local_layers
from harness.training.gates.checkpoint import Checkpoint, Step, restore
from harness.training.gates.processes import Processes
from harness.training.gates.recall import Recall, gate_recall, mean_recall
from harness.training.gates.recipe import Recipe
from harness.training.gates.weights import new_gates, save_gates, saved_dtype
from methods.gates.gate import Gate


@dataclass(frozen=True)
class Plan:
    """A training before it begins.

    first_step: of the text's batches, the first that it learns from. file: pattern of its file's name. about: what its file's
    metadata says beside the recipe. on_step: called after each of its steps, in every process; on_problem: where it is given
    up, with the reason. checkpoint: its state, which stays when all is done, for the caller to remove once nothing of the
    training is left to write.
    """

    recipe: Recipe
    first_step: int = 0
    file: str = "gates-{block_size}.safetensors"
    about: dict[str, Any] = field(default_factory=dict)
    on_step: Callable[[Step], None] | None = None
    on_problem: Callable[[str], None] | None = None
    checkpoint: Checkpoint | None = None

    @property
    def file_name(self) -> str:
        """Return the name of its file."""
        return self.file.format(block_size=self.recipe.block_size)

    @property
    def end(self) -> int:
        """Return how many batches of the text there must be."""
        return self.first_step + self.recipe.steps


@dataclass(frozen=True)
class Distilled:
    """The result of a training.

    path: of the gates' file. parameters: of the gates in the file. recall: on the held-out sequences, of the weights as
    saved. seconds: of this call until then, without what was done before a restart.
    """

    path: Path
    gates: list[Gate]
    steps: list[Step]
    recall: list[Recall]
    parameters: int
    seconds: float


class Training:
    """The gates of one training, their optimiser and the steps that are done, which go on from a checkpoint where one is.

    problem: why it was given up, or None.
    """

    def __init__(self, plan: Plan, loaded: LoadedModel, kind: type[Gate], processes: Processes) -> None:
        recipe = plan.recipe
        self.plan, self.recipe, self.loaded, self.processes = plan, recipe, loaded, processes
        self.gates = new_gates(loaded, kind, block_size=recipe.block_size, seed=recipe.seed, **recipe.gate_options)
        self.weights = [weight for gate in self.gates for weight in gate.parameters()]
        self.optimizer = torch.optim.AdamW(self.weights, lr=recipe.lr, weight_decay=recipe.weight_decay)
        state = plan.checkpoint.read() if plan.checkpoint is not None else None
        self.steps: list[Step] = restore(state, self.gates, self.optimizer, Step) if state is not None else []
        self.problem: str | None = None
        processes.agree(len(self.steps))

    @property
    def next_batch(self) -> int | None:
        """Return the number of the text's batch that it learns from next; None where it is at its end, or was given up."""
        done = self.problem is not None or len(self.steps) == self.recipe.steps
        return None if done else self.plan.first_step + len(self.steps)

    def begin_step(self, *, keep_gradients: bool) -> None:
        """Forget the gradients, and set the learning rate. keep_gradients: set them to zero in place, as a graph needs them."""
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate
        self.optimizer.zero_grad(set_to_none=not keep_gradients)

    def gather_step(self, means: Tensor) -> Tensor:
        """Make the gradients those of all processes, clipped if the recipe says so; return loss, recall and the norm that the
        gradient had before, float32 [3], without waiting for the device.

        means: loss and recall [2], of this process's share of the rows.
        """
        weights = [weight for weight in self.weights if weight.grad is not None]
        self.processes.add_up([means, *(weight.grad for weight in weights if weight.grad is not None)])
        norm = torch.nn.utils.clip_grad_norm_(weights, self.recipe.clip or math.inf)  # inf multiplies by exactly 1
        return torch.cat((means, norm[None]))

    def finish_step(self, numbers: Sequence[float], tokens: int, started: float) -> None:
        """Change the gates by the gradients of a step, and record it.

        numbers: what `gather_step` returned. tokens: of the step's batch. started: when the step was, by time.perf_counter.
        Where a number is not finite any more, `problem` says why.
        """
        loss, recall, gradient_norm = numbers
        number, rate = len(self.steps), self._rate
        if not math.isfinite(loss + gradient_norm):
            self._give_up(self._not_finite(loss, gradient_norm))
            return
        self.optimizer.step()
        if number + 1 == self.recipe.steps and not all(bool(weight.isfinite().all()) for weight in self.weights):
            what = f"{self.plan.file_name}: step {number + 1} of {number + 1}: the gates are not finite any more"
            self._give_up(f"{what}: lower lr. None were written")
            return
        seen = (self.steps[-1].tokens if self.steps else 0) + tokens
        seconds = time.perf_counter() - started
        step = Step(step=number, loss=loss, recall=recall, lr=rate, tokens=seen, grad_norm=gradient_norm, seconds=seconds)
        self.steps.append(step)
        if self.plan.on_step is not None:
            self.plan.on_step(step)
        checkpoint = self.plan.checkpoint
        if checkpoint is not None and self.processes.main and checkpoint.due(number + 1, self.recipe.steps):
            checkpoint.save(self.gates, self.optimizer, self.steps)

    def end(self, out: Path, held_out: Sequence[Tensor], started: float) -> Distilled:
        """Write the gates into folder `out` and measure their recall. The first of several processes writes.

        started: when the call was that trained them, by time.perf_counter.
        """
        for gate in self.gates:
            gate.requires_grad_(False)
        state = self.optimizer.state
        trained = {layer for layer, gate in enumerate(self.gates) if any(w in state for w in gate.parameters())}
        local = local_layers(self.loaded) - trained  # those whose window held the text of a step have something to save
        parameters = sum(w.numel() for layer, gate in enumerate(self.gates) if layer not in local for w in gate.parameters())
        dtype = saved_dtype(self.recipe.dtype, parameters)
        for weight in self.weights:
            weight.data = weight.data.to(dtype).float()  # recall below is that of the file
        recalls = gate_recall(self.loaded, self.gates, held_out) if held_out else []
        path = out / self.plan.file_name
        if self.processes.main:
            metadata = {
                **self.plan.about,
                **self.recipe.facts(),
                "tokens": self.steps[-1].tokens,
                "processes": self.processes.count,
                "model": self.loaded.name,
                "model_hash": self.loaded.revision_hash,
                "model_dtype": str(self.loaded.dtype).removeprefix("torch."),
                "loss": self.steps[-1].loss,
                "recall": mean_recall(recalls),
            }
            save_gates(self.gates, path, dtype=dtype, recipe=metadata, local=local)
        self.processes.wait()
        return Distilled(path, self.gates, self.steps, recalls, parameters, time.perf_counter() - started)

    def _give_up(self, problem: str) -> None:
        """End the training without a file."""
        self.problem = problem
        if self.plan.on_problem is not None:
            self.plan.on_problem(problem)

    @property
    def _rate(self) -> float:
        """Return the learning rate of the next step."""
        return self.recipe.lr * self.recipe.rate(len(self.steps))

    def _not_finite(self, loss: float, gradient_norm: float) -> str:
        """Return what to say of the next step, whose loss or gradient is not finite, and what is probably at fault."""
        step = len(self.steps)
        what = (
            f"step {step + 1} of {self.recipe.steps}: the loss of the gates is {loss}, the norm of its gradient {gradient_norm}"
        )
        if step == 0 and not math.isfinite(loss):  # new gates are finite: what the model shows them is not
            dtype = str(self.loaded.dtype).removeprefix("torch.")
            cause = (
                f"the queries or keys of {self.loaded.name} are not finite in {dtype}: check its weights, or set another dtype"
            )
        else:
            cause = "the gates took too large a step: lower lr, or set a clip"
        return f"{self.plan.file_name}: {what}; probably {cause}. No gates were written"
