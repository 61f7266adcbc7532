"""MoA: every query head attends to a sink and to a window whose width is linear in the prompt's length, found offline."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from attention_kernels.block_index import BlockIndex, causal_blocks
from torch import Tensor

from methods import register
from methods.parts.base import Grid, HeadSearch, LayerInputs, Method
from methods.parts.head_spans import (
    LEAST_BLOCKS,
    SpanRules,
    counts_at_density,
    density_of,
    parse_rules,
    span_index,
    whole_counts,
)
from methods.parts.release import Release
from methods.searches.moa_search import SpanSearch

SINKS = 64
BUDGET = 0.5
"""Mean span ÷ prompt of the release's rules."""
BUDGETS = (0.5, 0.35, 0.25, 0.18, 0.125, 0.09, 0.0625, 0.045)
"""Those that a search finds rules for: rules of a budget that is far from the density asked for, scaled, are not the best."""
GIVEN = "given"
"""What the rules of a file without plans are called: a released one."""


LATEST = 8
"""Shapes of calls whose rows are held: the prompts of a task set differ in length."""


@dataclass(frozen=True)
class LayerRows:
    """What the rows of one layer keep. counts: blocks, int32 [Hq,Mq]. most: the largest. all_seen: whether they keep all."""

    counts: Tensor
    most: int
    all_seen: bool


@register("moa")
class MoA(Method):
    """Keeps in each query head the sinks and a window; both together span alpha + beta · N tokens of a prompt of N.

    alpha and beta are each head's own. They come from job=search_heads (`moa-rules.json`, required), which finds rules for
    several budgets, or from the file `rules`. A span is at least two blocks, at most the prompt, and rounded up to whole
    blocks.

    budget: mean span ÷ prompt that the rules were found for, 0.5 unless given, as in the release. sinks: first tokens that
    every row keeps, rounded up to whole blocks; they are part of the span. new_tokens: counted in N beside the prompt, 1024 in
    the release. rules: path of a searched file, or of a released moa_alpha_beta.json.

    With a sparsity the density over all heads of the model is as asked: of the file's rules those of the nearest density are
    taken, and all their spans multiplied by one factor, found by formula. A layer whose heads all span the prompt runs the
    dense kernel; the least span holds only as released. Deviation: the search measures the error of each head's output
    instead of taking gradients.
    """

    paper = "MoA: Mixture of Sparse Attention, arXiv 2406.14909"
    knob = "budget"
    family = "static"
    searched = "moa-rules.json"
    search_required = True
    release = Release(
        "thu-nics/MoA",
        source="MoA/attention/cache_utils.py",
        settings={"block_size": 64, "sinks": 64, "new_tokens": 1024},
    )

    def __init__(
        self,
        *,
        block_size: int = 64,
        sparsity: float | None = None,
        seed: int = 0,
        budget: float | None = None,
        sinks: int = SINKS,
        new_tokens: int = 0,
        rules: str | None = None,
    ) -> None:
        super().__init__(block_size=block_size, sparsity=sparsity, seed=seed)
        self.one_of(budget=budget)
        if budget is not None and not 0 < budget <= 1:
            raise ValueError(f"budget={budget}: must be a share of the prompt, above 0 and at most 1")
        if sinks < 0 or new_tokens < 0:
            raise ValueError(f"sinks={sinks}, new_tokens={new_tokens}: must be at least 0 tokens")
        self.budget_asked = budget
        self.budget_share = (BUDGET if budget is None else budget) if sparsity is None else None
        self.sinks = sinks
        self.new_tokens = new_tokens
        self.rules = rules
        self.plans: dict[str, SpanRules] | None = None
        self._rows: dict[tuple[Any, ...], dict[int, LayerRows]] = {}

    # -- the rules of a search ---------------------------------------------------------------------------------------

    def search_file(self) -> str | None:
        return self.rules or self.searched

    def search(self, *, layers: int, heads: int, kv_heads: int, head_dim: int) -> HeadSearch:
        budgets = {*BUDGETS, *([] if self.budget_share is None else [self.budget_share])}
        return SpanSearch(layers, heads, block=self.block_size, sinks=self.sinks, budgets=sorted(budgets))

    def draw_search(
        self, generator: torch.Generator, *, layers: int, heads: int, kv_heads: int, head_dim: int
    ) -> dict[str, Any]:
        budgets = {*BUDGETS, *([] if self.budget_share is None else [self.budget_share])}
        shares = torch.rand(layers, heads, generator=generator)
        plans = {
            f"{budget:g}": {
                "alphas": torch.zeros(layers, heads).tolist(),
                "betas": (2 * budget * shares).clamp(max=1.0).tolist(),
            }
            for budget in sorted(budgets)
        }
        return {"plans": plans}

    def load_search(self, result: Mapping[str, Any], *, layers: int, heads: int, kv_heads: int, head_dim: int) -> None:
        plans = result.get("plans", {GIVEN: result})
        if not isinstance(plans, dict) or not plans or not all(isinstance(plan, dict) for plan in plans.values()):
            raise ValueError('its "plans" must be rules by budget: {"0.5": {"alphas": …, "betas": …}, …}')
        parsed = {name: parse_rules(plan, layers=layers, heads=heads) for name, plan in plans.items()}
        if self.budget_share is not None and self._plan_name() not in parsed and (GIVEN not in parsed or self.budget_asked):
            others = ", ".join(name for name in parsed if name != GIVEN)
            instead = f"choose one of: {others}" if others else "they are of no stated budget: leave it out"
            raise ValueError(f"it has no rules of a budget of {self.budget_share:g}; {instead}")
        self.plans = parsed
        self._rows = {}

    def _plan_name(self) -> str:
        return f"{self.budget_share:g}"

    # -- selecting ---------------------------------------------------------------------------------------------------

    def plan(self, grid: Grid) -> SpanRules:
        """Return the rules that run: those of the budget, or those whose density is nearest to what was asked for."""
        if self.plans is None:
            raise ValueError(
                f"method {self.name} has no rules for heads: load {self.searched} first, which "
                f"`python -m harness job=search_heads method={self.name}` makes"
            )
        if self.sparsity is None:
            return self.plans.get(self._plan_name()) or self.plans[GIVEN]
        target = math.log(1 - self.sparsity)
        return min(self.plans.values(), key=lambda rules: abs(math.log(density_of(self._spans(rules, grid), grid)) - target))

    def _spans(self, rules: SpanRules, grid: Grid) -> tuple[int, ...]:
        """Return the spans of all heads of the model, layer after layer, in tokens."""
        spans = rules.spans(grid["k_len"] + self.new_tokens, LEAST_BLOCKS * self.block_size)
        return tuple(tokens for layer in spans for tokens in layer)

    def prompt_rows(self, grid: Grid, device: torch.device) -> dict[int, LayerRows]:
        """Return what the rows of a prompt keep in every layer that has rules; for the latest shapes it is kept for the
        next call."""
        key = (grid["q_len"], grid["k_len"], device)
        if key not in self._rows:
            rules = self.plan(grid)
            spans = self._spans(rules, grid)
            if self.sparsity is None:
                counts = whole_counts(spans, grid)
            else:
                least = LEAST_BLOCKS if self.as_released else 0
                counts = counts_at_density(spans, 1 - self.sparsity, grid, least=least)
            seen = causal_blocks(**grid)
            layers = counts.split([len(layer) for layer in rules.alphas])
            while len(self._rows) >= LATEST:
                del self._rows[next(iter(self._rows))]
            with torch.inference_mode(False):  # a tensor made in inference mode could not take part in training later
                self._rows[key] = {
                    n: LayerRows(layer.to(device), int(layer.max()), bool((layer == seen).all()))
                    for n, layer in enumerate(layers)
                    if len(layer)
                }
        return self._rows[key]

    @torch.no_grad()
    def select(self, x: LayerInputs) -> BlockIndex | None:
        grid, batch = self.grid(x), x.q.shape[0]
        if self.sparsity == 0:
            return BlockIndex.full(batch, x.k.shape[1], device=x.q.device, **grid)
        of_prompt = self.prompt_rows(self.prompt_grid(x), x.q.device).get(x.layer)
        if of_prompt is None:
            raise ValueError(f"method {self.name} has no rules for layer {x.layer}, which its search never saw")
        if of_prompt.all_seen:
            return None
        counts = of_prompt.counts[:, self.rows(x)]
        width = min(of_prompt.most, -(-grid["k_len"] // grid["k_block"]))
        return span_index(counts, -(-self.sinks // self.block_size), batch, grid, width=width)

    def knobs(self) -> dict[str, int | float | str | bool | None]:
        rules = None if self.rules is None else Path(self.rules).name  # a row tells the file by its hash
        return {"budget": self.budget_share, "sinks": self.sinks, "new_tokens": self.new_tokens, "rules": rules}


if __name__ == "__main__":
    from methods.parts.demo import demo

    demo("moa", sinks=32)
