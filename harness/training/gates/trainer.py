"""The gradient of gates from one step's text, a layer at a time as the frozen model runs, for one or several trainings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Generic, Protocol, TypeVar

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


class Learner(Protocol):
    """Gates, one a layer, and what their loss is."""

    @property
    def gates(self) -> Sequence[Gate]:
        """Return the gates, whose gradients are added to."""
        ...

    @property
    def recipe(self) -> Recipe:
        """Return the recipe that says what their loss is."""
        ...


OneLearner = TypeVar("OneLearner", bound=Learner)


class GateTrainer(Generic[OneLearner]):
    """Takes each layer's share of a step: its target, its gates' loss, and the gradient at once.

    The gradient of a step is the mean over its rows, however they are divided into processes and forward passes. active: the
    trainings that learn from the pass at hand; they share the target of a layer, where it is pooled the same way. weight: the
    share of the step's rows that the pass has.
    """

    def __init__(self, loaded: LoadedModel, processes: Processes, micro_rows: int | None) -> None:
        self.loaded = loaded
        self.processes = processes
        self.micro_rows = micro_rows
        self.active: Sequence[OneLearner] = ()
        self.weight = 1.0
        self._ropes: dict[int, ModelRope] = {}
        self._layers: dict[int, Tensor] = {}

    def parts(self, batch: Tensor) -> Iterator[Tensor]:
        """Yield this process's rows of a step's batch [B,N], `micro_rows` at a time; each is to be run before the next."""
        own = self.processes.share(batch)
        for part in own.split(self.micro_rows or len(own)):
            self.weight = len(part) / len(batch)
            yield part

    def visit(self, layer: int, q: Tensor, k: Tensor, scale: float, lse: Tensor | None) -> None:
        """Take the gradient of a layer's gates from its q [B,Hq,N,D] and k [B,Hkv,N,D], post-RoPE, and keep their losses.

        lse: log-sum-exp of the queries' scores [B,Hq,N], where it is known.
        """
        if layer not in self._ropes:
            self._ropes[layer] = ModelRope(self.loaded.model, layer)
        targets: dict[str, Tensor] = {}
        losses = []
        for training in self.active:
            gate, recipe = training.gates[layer], training.recipe
            learnt = gate.learns_from(q)
            if recipe.pool not in targets:
                known = None if lse is None else lse[:, :, -learnt.shape[2] :]
                targets[recipe.pool] = target_map(learnt, k, gate, scale=scale, pool=recipe.pool, lse=known)
            target = targets[recipe.pool]
            with torch.enable_grad():  # the model's forward pass around us has none
                logits = gate(learnt, k, self._ropes[layer])
                loss = gate_loss(target, logits, skip_rows=recipe.skip_rows, row_weight=recipe.row_weight)
                (loss * (self.weight / len(training.gates))).backward()
            recall = sampled_recall(target, logits.detach(), STEP_DENSITY, gate_grid(gate, learnt, k))
            losses.append(torch.stack((loss.detach(), recall)))
        self._layers[layer] = torch.stack(losses) * self.weight

    def end_pass(self) -> Tensor:
        """Return loss and recall of the pass that has just run, float32 [active trainings, 2]: means over the layers that it
        showed, times its weight. Raises UserError where it showed none."""
        if not self._layers:
            raise UserError(f"no layer of {self.loaded.name} attends to the whole text: gates have nothing to learn")
        # in float64, which rounds the same in whatever order torch adds up, which depends on how many trainings there are
        means = torch.stack(list(self._layers.values())).mean(0, dtype=torch.float64).float()
        self._layers.clear()
        return means
