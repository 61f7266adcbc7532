"""One training of gates, as most tests need it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import Tensor

from harness.models.loading import LoadedModel
from harness.training.gates.distill import distill
from harness.training.gates.processes import Processes
from harness.training.gates.recipe import Recipe
from harness.training.gates.training import Distilled, Plan
from methods.gates.attn_gate import AttnGate
from methods.gates.gate import Gate


def distill_one(
    loaded: LoadedModel,
    tokens: Iterator[Tensor],
    recipe: Recipe,
    *,
    out: Path,
    held_out: Sequence[Tensor] = (),
    kind: type[Gate] = AttnGate,
    processes: Processes | None = None,
    cuda_graph: bool = False,
    **plan: Any,
) -> Distilled:
    """`distill` of one plan, with what a plan has beside its recipe among the options."""
    plans = [Plan(recipe, **plan)]
    options = {"held_out": held_out, "kind": kind, "processes": processes, "cuda_graph": cuda_graph}
    (distilled,) = distill(loaded, tokens, plans, out=out, **options)
    return distilled


def train(loaded: LoadedModel, tokens: Iterator[Tensor], *, out: Path, **given: Any) -> Distilled:
    """`distill_one`, with the recipe's settings among its options."""
    names = {field.name for field in fields(Recipe)}
    recipe = Recipe(**{name: value for name, value in given.items() if name in names})
    return distill_one(loaded, tokens, recipe, out=out, **{name: value for name, value in given.items() if name not in names})
