"""How a model is fine-tuned: every number that changes the result, checked before anything is loaded or run."""

from __future__ import annotations

from dataclasses import dataclass

from harness.core.errors import UserError
from harness.training.gates.recipe import LARGEST, Recipe

LEAST_FACTOR, MOST_FACTOR = 1.0, 8.0


@dataclass(frozen=True)
class FinetuneRecipe:
    """Steps of AdamW on a model and, where its method has them, on the gates beside it.

    recipe: of the model's weights, and of the loss of the gates, whose learning rate falls the same way from `gate_lr`.
    factor: by which YaRN stretches `trained_length` (tokens; None: what the model's config says); 1 leaves RoPE as it is.
    sparsity: that is asked of the method, None where its own knob decides. anneal_steps: over which it goes in a line from
    `anneal_from` to `sparsity`; 0: it is the same at every step. gates_only: the model stays as it is.
    """

    recipe: Recipe
    factor: float = 4.0
    trained_length: int | None = None
    gate_lr: float = 1e-4
    sparsity: float | None = None
    anneal_from: float = 0.0
    anneal_steps: int = 0
    gates_only: bool = False

    def __post_init__(self) -> None:
        """Raise UserError for a number that is out of range."""
        if not LEAST_FACTOR <= self.factor <= MOST_FACTOR:
            raise UserError(f"factor={self.factor}: must be from 1, which leaves RoPE as it is, to {MOST_FACTOR:g}")
        if not 0 <= self.gate_lr <= LARGEST:
            raise UserError(f"gate_lr={self.gate_lr}: must be from 0 (gates stay as they are) to {LARGEST:g}")
        if not 0 <= self.anneal_from < 1:
            raise UserError(f"anneal_from={self.anneal_from}: must be at least 0 and below 1, a sparsity as sparsity= is")
        if self.anneal_steps < 0:
            raise UserError(f"anneal_steps={self.anneal_steps}: must be at least 0 steps")
        if self.anneal_steps and self.sparsity is None:
            raise UserError(f"anneal_steps={self.anneal_steps}: there is no sparsity to go to; give sparsity=, or 0 steps")

    def sparsity_at(self, step: int) -> float | None:
        """Return the sparsity that step 0, 1, … asks for; None where the method's own knob decides."""
        if self.sparsity is None or step >= self.anneal_steps:
            return self.sparsity
        return self.anneal_from + (self.sparsity - self.anneal_from) * step / self.anneal_steps
