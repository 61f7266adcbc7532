"""The gradient of all gates from one step's text, a layer at a time as the frozen model runs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from harness.core.errors import UserError
from harness.models.loading import LoadedModel
from harness.models.rope import ModelRope
from harness.training.gates.loss import gate_loss
from harness.training.gates.processes import Processes
from harness.training.gates.recall import sampled_recall
from harness.training.gates.recipe import Recipe
from harness.training.gates.target_map import gate_grid, target_map
from methods.gates.gate import Gate

STEP_DENSITY = 0.1
"""Density at which recall is shown while training."""


class GateTrainer:
    """Takes each layer's share of a step: its target, its gate's loss, and the gradient at once.

    The gradient of a step is the mean over its rows, however they are divided into processes and forward passes. weight: the
    share of the step's rows that the pass at hand has.
    """

    def __init__(self, loaded: LoadedModel, gates: Sequence[Gate], recipe: Recipe, processes: Processes) -> None:
        self.loaded = loaded
        self.gates = gates
        self.recipe = recipe
        self.processes = processes
        self.weight = 1.0
        self._ropes: dict[int, ModelRope] = {}
        self._layers: dict[int, Tensor] = {}
        self._sum: Tensor | None = None

    def parts(self, batch: Tensor) -> Iterator[Tensor]:
        """Yield this process's rows of a step's batch [B,N], `micro_rows` at a time; each is to be run before the next."""
        own = self.processes.share(batch)
        for part in own.split(self.recipe.micro_rows or len(own)):
            self.weight = len(part) / len(batch)
            yield part

    def visit(self, layer: int, q: Tensor, k: Tensor, scale: float) -> None:
        """Take the gradient of a layer's gate from its q [B,Hq,N,D] and k [B,Hkv,N,D], post-RoPE, and add up its loss."""
        gate = self.gates[layer]
        if layer not in self._ropes:
            self._ropes[layer] = ModelRope(self.loaded.model, layer)
        q = gate.learns_from(q)
        target = target_map(q, k, gate, scale=scale, pool=self.recipe.pool)
        with torch.enable_grad():  # the model's forward pass around us has none
            logits = gate(q, k, self._ropes[layer])
            loss = gate_loss(target, logits, skip_rows=self.recipe.skip_rows, row_weight=self.recipe.row_weight)
            (loss * (self.weight / len(self.gates))).backward()
        recall = sampled_recall(target, logits.detach(), STEP_DENSITY, gate_grid(gate, q, k))
        self._layers[layer] = torch.stack((loss.detach(), recall)) * self.weight

    def end_pass(self) -> Tensor:
        """Return loss and recall of the pass that has just run, [2] float32: means over the layers that it showed, times its
        weight. Raises UserError where it showed none."""
        if not self._layers:
            raise UserError(f"no layer of {self.loaded.name} attends to the whole text: gates have nothing to learn")
        means = torch.stack(list(self._layers.values())).mean(0)
        self._layers.clear()
        return means

    def add(self, means: Tensor) -> None:
        """Add what `end_pass` returned to the step."""
        self._sum = means if self._sum is None else self._sum + means

    def finish(self, step: int) -> tuple[float, float, float]:
        """Return loss and recall of step 0, 1, …, means over the layers that were seen, and the norm of the gradient.

        The gradient is that of all processes then, and clipped if the recipe says so; the norm is from before. Waits for the
        device. Raises UserError where a number is not finite.
        """
        assert self._sum is not None  # a step has one pass at least
        means, self._sum = self._sum, None
        weights = [weight for gate in self.gates for weight in gate.parameters() if weight.grad is not None]
        self.processes.add_up([means, *(weight.grad for weight in weights if weight.grad is not None)])
        norm = torch.nn.utils.clip_grad_norm_(weights, self.recipe.clip or math.inf)  # inf multiplies by exactly 1
        loss, recall, gradient_norm = torch.cat((means, norm[None])).tolist()
        if not math.isfinite(loss + gradient_norm):
            raise UserError(self._not_finite(step, loss, gradient_norm))
        return loss, recall, gradient_norm

    def _not_finite(self, step: int, loss: float, gradient_norm: float) -> str:
        """Return what to say of a step whose loss or gradient is not finite, and what is probably at fault."""
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
        return f"{what}; probably {cause}. No gates were written"
