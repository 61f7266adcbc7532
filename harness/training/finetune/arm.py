"""What attends while a model is fine-tuned: its method at the sparsity of a step, and the gates that it chooses by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import methods
from harness.arms import gate_files
from harness.arms.build import build_method, decodes_densely
from harness.arms.head_files import load_head_file
from harness.arms.weights import model_overrides, option_overrides, weights_folder
from harness.core.errors import UserError
from harness.core.mistakes import as_user_error
from harness.core.settings import Settings
from harness.models.loading import LoadedModel, model_shape
from harness.training.finetune.recipe import FinetuneRecipe
from harness.training.gates.gate_spec import GateSpec, gate_spec
from harness.training.gates.weights import new_gates
from methods.gates.gate import Gate
from methods.gates.weights import fill_gates, gate_state
from methods.parts.base import Method


@dataclass(frozen=True)
class TrainingArm:
    """The method of the settings, built anew where the sparsity changes. spec: of its gates; None where it has none."""

    settings: Settings
    spec: GateSpec | None

    @property
    def dense(self) -> bool:
        """Return whether the method drops nothing."""
        return methods.get(self.settings.method).family == "none"

    def method(self, sparsity: float | None, loaded: LoadedModel) -> Method | None:
        """Return the method at a sparsity; None where that is dense attention. Raises UserError as `check` does."""
        if sparsity == 0 or self.dense:
            return None
        method = self._build(sparsity)
        load_head_file(method, self.settings.model, loaded)
        return method.to(loaded.device)

    def check(self, recipe: FinetuneRecipe) -> None:
        """Raise UserError where the method can't be had at the sparsity of some step, before anything is loaded."""
        if not self.dense:
            for sparsity in {recipe.sparsity_at(step) for step in range(recipe.recipe.steps)} - {0.0}:
                self._build(sparsity)

    def _build(self, sparsity: float | None) -> Method:
        try:
            method = build_method(replace(self.settings, sparsity=sparsity))
        except ValueError as error:
            raise as_user_error(error) from error
        if (knob := method.calibrates()) is not None:
            raise UserError(
                f"method {method.name} has no formula from sparsity={sparsity} to its {knob.name}, and a training can't search "
                f"it at every step: choose a rule of its that has a formula, or sparsity=null and method.{knob.name}=VALUE"
            )
        if method.weights is not None and self.spec is None:
            raise UserError(f"method {method.name} needs weights that job=finetune can't train beside the model")
        return method


def training_arm(settings: Settings) -> TrainingArm:
    """Return the arm that the settings name. Raises UserError for a name that is not known, and for a method of decoding, which
    training has no place for."""
    if not decodes_densely(settings.decode):
        raise UserError(f"decode={settings.decode}: a training attends to whole texts and decodes nothing; leave it out")
    try:
        gated = methods.get(settings.method).gate is not None
    except ValueError as error:
        raise as_user_error(error) from error
    # the sparsity is checked at every step's value, not here
    spec = gate_spec(replace(settings, sparsity=None, as_released=False)) if gated else None
    return TrainingArm(settings, spec)


def first_gates(settings: Settings, spec: GateSpec, loaded: LoadedModel, *, new: bool, seed: int) -> list[Gate]:
    """Return the gates that a training begins with, one a layer, to be trained: those of the model's gates folder, or new ones.

    Raises UserError where there is no file of them, or one that does not fit.
    """
    gates = new_gates(loaded, spec.kind, block_size=spec.block_size, seed=seed, **spec.options)
    if not new:
        folder = weights_folder(settings.model, loaded)
        path = gate_files.find(folder, spec.file_name, spec.kind, None, training=spec.name)
        if path is None:
            raise UserError(
                f"no gates to begin with: {folder / spec.file_name} is missing; name their folder (model.gates=FOLDER), train "
                f"them with `python -m harness job=distill method={settings.method} {model_overrides(settings.model)}"
                f"block_size={spec.block_size}{option_overrides(spec.options)}`, or begin with new ones (job.new_gates=true)"
            )
        stored = gate_files.read(path, spec.kind, block_size=spec.block_size, options=spec.options)
        state = gate_files.for_all_layers(stored, path, loaded, loaded.max_length)
        try:
            fill_gates(gates, state, loaded.name)
        except ValueError as error:
            raise UserError(f"{path} does not fit {loaded.name}: {error}") from error
    for gate in gates:
        gate.requires_grad_(True)
    return gates


def give_gates(method: Method, gates: Sequence[Gate], loaded: LoadedModel) -> None:
    """Let a method choose by a copy of gates as they are now."""
    state = {name: weight.clone() for name, weight in gate_state(gates).items()}
    method.load(state, **model_shape(loaded))
    method.to(loaded.device)
