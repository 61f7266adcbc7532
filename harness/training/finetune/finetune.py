"""Train a model, and the gates beside it, on long texts: cross-entropy for the one, distillation for the others.

The sum of both losses is what a step goes down. The gates' loss reads queries and keys that are cut off from the model's graph,
so that its gradient reaches the gates alone. Weights and moments are float32; on a GPU the passes run under autocast.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from harness.core.errors import UserError
from harness.models.loading import LoadedModel
from harness.models.loss import mean_nll
from harness.training.finetune.arm import TrainingArm, give_gates
from harness.training.finetune.attention import TrainingAttention
from harness.training.finetune.recipe import FinetuneRecipe
from harness.training.finetune.sharded import (
    add_gradients_up,
    are_finite,
    clip,
    is_sharded,
    optimizer_state_shared_as,
    shared_as,
    whole,
)
from harness.training.gates.checkpoint import Checkpoint, restore
from harness.training.gates.processes import Processes
from harness.training.gates.recipe import Recipe
from harness.training.gates.trainer import GateTrainer
from methods.gates.gate import Gate
from methods.parts.base import Method


@dataclass(frozen=True)
class FinetuneStep:
    """One step. loss: cross-entropy in nats a token. gate_loss: KL in nats, and recall as in gates' steps; None without gates.
    density: measured, the mean over layers. lr: of the model. tokens: seen up to here. grad_norm, gate_grad_norm: before
    clipping. seconds: of the step, the drawing of its text included."""

    step: int
    loss: float
    gate_loss: float | None
    recall: float | None
    density: float
    lr: float
    tokens: int
    grad_norm: float
    gate_grad_norm: float | None
    seconds: float


@dataclass(frozen=True)
class GatesBeside:
    """The gates that learn while the model does: a learner of `GateTrainer`."""

    gates: Sequence[Gate]
    recipe: Recipe


@dataclass
class Finetuning:
    """A model that is fine-tuned by an arm, and how far it is.

    loaded: the model, its RoPE stretched already, in float32; its weights change. gates: None where the arm has none.
    autocast: dtype of the passes, None for float32. checkpoint: its state, which stays when all is done. processes: each has
    its rows of a step, and gradients are added up. Each holds the whole model, or its share of layers that are shared (FSDP).
    """

    loaded: LoadedModel
    arm: TrainingArm
    gates: list[Gate] | None
    recipe: FinetuneRecipe
    autocast: torch.dtype | None = None
    checkpoint: Checkpoint | None = None
    processes: Processes = field(default_factory=Processes)
    steps: list[FinetuneStep] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Make the optimiser, and take the state of the checkpoint where it has one. Raises UserError where the processes find
        different states."""
        model, own = self.loaded.model, self.recipe.recipe
        model.requires_grad_(not self.recipe.gates_only)
        self.sharded = is_sharded(model)
        add_gradients_up(model)
        self.weights = [] if self.recipe.gates_only else list(model.parameters())
        self.gate_weights = [weight for gate in self.gates or () for weight in gate.parameters()]
        parts = ((self.weights, own.lr), (self.gate_weights, self.recipe.gate_lr))
        groups: list[dict[str, Any]] = [{"params": weights, "peak": peak} for weights, peak in parts if weights]
        # many at a time would have to be all shared or all whole
        foreach = False if self.sharded else None
        self.optimizer = torch.optim.AdamW(groups, lr=own.lr, weight_decay=own.weight_decay, foreach=foreach)
        state = self.checkpoint.read() if self.checkpoint is not None else None
        if state is not None:
            if self.sharded and state["steps"]:
                state["gates"] = [shared_as(part, module) for part, module in zip(state["gates"], self._modules, strict=True)]
                state["optimizer"] = optimizer_state_shared_as(state["optimizer"], self.optimizer)
            self.steps = restore(state, self._modules, self.optimizer, FinetuneStep)
        self.processes.agree(len(self.steps))
        self.trainer: GateTrainer[GatesBeside] = GateTrainer(self.loaded, self.processes, own.micro_rows)
        self.trainer.active = () if self.gates is None else (GatesBeside(self.gates, own),)
        self._method: tuple[float | None, Method | None] | None = None

    @property
    def _modules(self) -> list[Any]:
        """Return all that is trained."""
        return [self.loaded.model, *(self.gates or ())]

    def run(
        self,
        tokens: Iterator[Tensor],
        *,
        kernel: str = "auto",
        dense_kernel: str = "auto",
        on_step: Callable[[FinetuneStep], None] | None = None,
    ) -> None:
        """Do the steps that are left. tokens: the batches [B,N] int64 of all steps, from the first, whatever was done.

        on_step: called after each step. Raises UserError where `tokens` ends early, or a number is not finite any more: the
        last checkpoint is then still there.
        """
        count = self.recipe.recipe.steps
        visit = self.trainer.visit if self.gates is not None else None
        with TrainingAttention(self.loaded, visit, kernel=kernel, dense_kernel=dense_kernel) as attention:
            for number in range(count):
                started = time.perf_counter()
                batch = next(tokens, None)
                if batch is None:
                    raise UserError(f"the text ended after {number} of {count} steps: give more text, or fewer steps")
                if number < len(self.steps):
                    continue
                step = self._step(number, torch.atleast_2d(batch), attention, started)
                self.steps.append(step)
                if on_step is not None:
                    on_step(step)
                if self.checkpoint is not None and self.checkpoint.due(number + 1, count):
                    self._save(self.checkpoint)
        is_bad = torch.tensor([float(not are_finite((*self.weights, *self.gate_weights)))], device=self.loaded.device)
        self.processes.add_up([is_bad])  # of shared weights each process sees its own
        if float(is_bad):
            raise UserError("the weights are not finite any more: lower lr or gate_lr, or set a clip. No model was written")

    def _save(self, checkpoint: Checkpoint) -> None:
        """Write the state. Where the model is shared all processes give their parts, and the main one writes."""
        main = self.processes.main
        if not self.sharded and main:
            checkpoint.save(self._modules, self.optimizer, self.steps)
        elif self.sharded:
            states = whole([module.state_dict() for module in self._modules], keep=main)
            moments = whole(self.optimizer.state_dict(), keep=main)
            if main:
                checkpoint.save_states(states, moments, self.steps)

    def held_out_loss(self, rows: Sequence[Tensor], *, kernel: str = "auto", dense_kernel: str = "auto") -> float | None:
        """Return the mean cross-entropy in nats a token of rows [1,N], under the attention of the last step; None for no
        rows."""
        if not rows:
            return None
        with TrainingAttention(self.loaded, None, kernel=kernel, dense_kernel=dense_kernel) as attention, torch.no_grad():
            attention.method = self._method_at(self.recipe.recipe.steps - 1)
            with self._passes():
                losses = [mean_nll(self.loaded, row.to(self.loaded.device)) for row in rows]
        return float(torch.stack(losses).double().mean())

    def _step(self, number: int, batch: Tensor, attention: TrainingAttention, started: float) -> FinetuneStep:
        """Make one step on a batch [B,N]. Raises UserError, before any weight changes, where loss or gradient is not finite."""
        share, most = self.recipe.recipe.rate(number), self.recipe.recipe.clip or math.inf
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * share
        self.optimizer.zero_grad()
        attention.method = self._method_at(number)
        losses, of_gates, densities = [], [], []
        for part in self.trainer.parts(batch):
            with self._passes(), torch.set_grad_enabled(bool(self.weights)):
                loss = mean_nll(self.loaded, part.to(self.loaded.device)) * self.trainer.weight
            if self.weights:
                loss.backward()
            losses.append(loss.detach())
            densities.append(attention.take_density() * self.trainer.weight)
            if self.gates is not None:
                of_gates.append(self.trainer.end_pass()[0])
        numbers = torch.stack((torch.stack(losses).sum(), torch.stack(densities).sum()))
        if self.gates is not None:
            numbers = torch.cat((numbers, torch.stack(of_gates).sum(0)))
        learnt = [weight for weight in self.gate_weights if weight.grad is not None]
        gradients = [weight.grad for weight in (*self.weights, *learnt) if weight.grad is not None]
        # those of shared layers are added up as the backward pass goes
        self.processes.add_up([numbers, *(gradient for gradient in gradients if not isinstance(gradient, DTensor))])
        # apart from the gates', which would else change the step of the model
        none = torch.zeros((), device=numbers.device)
        norms = [clip(weights, most) if weights else none for weights in (self.weights, learnt)]
        values = torch.cat((numbers, torch.stack(norms))).tolist()  # the one wait of a step for the device
        loss_value, density = values[:2]
        gate_loss, recall = values[2:4] if self.gates is not None else (None, None)
        grad_norm, gate_norm = values[-2], values[-1] if learnt else None
        self._check_finite(number, loss_value, grad_norm, gate_loss or 0.0, gate_norm or 0.0)
        self.optimizer.step()
        return FinetuneStep(
            step=number,
            loss=loss_value,
            gate_loss=gate_loss,
            recall=recall,
            density=density,
            lr=self.recipe.recipe.lr * share,
            tokens=(self.steps[-1].tokens if self.steps else 0) + batch.numel(),
            grad_norm=grad_norm,
            gate_grad_norm=gate_norm,
            seconds=time.perf_counter() - started,
        )

    def _method_at(self, number: int) -> Method | None:
        """Return the method of a step, which chooses by the gates as they are now."""
        sparsity = self.recipe.sparsity_at(number)
        if self._method is None or self._method[0] != sparsity:
            self._method = sparsity, self.arm.method(sparsity, self.loaded)
        method = self._method[1]
        if method is not None and self.gates is not None:
            give_gates(method, self.gates, self.loaded)
        return method

    def _passes(self) -> torch.autocast:
        """Return the context of forward passes."""
        return torch.autocast(self.loaded.device.type, dtype=self.autocast, enabled=self.autocast is not None)

    def _check_finite(self, number: int, loss: float, norm: float, gate_loss: float, gate_norm: float) -> None:
        if not math.isfinite(loss + norm + gate_loss + gate_norm):
            what = f"the loss is {loss}, its gradient's norm {norm}, those of the gates {gate_loss} and {gate_norm}"
            count = self.recipe.recipe.steps
            raise UserError(f"step {number + 1} of {count}: {what}: lower lr or gate_lr, or set a clip. No model was written")
