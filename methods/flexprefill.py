"""FlexPrefill: the last queries say, head by head, whether columns and diagonals will do or a pooled map is needed."""

from __future__ import annotations

import torch
from attention_kernels.block_index import BlockIndex, causal_mask
from attention_kernels.largest_within import largest_within
from attention_kernels.last_queries import vertical_slash
from attention_kernels.pool import pool
from attention_kernels.selection.reference import pooled_scores
from torch import Tensor

from methods import register
from methods.parts.base import Grid, Knob, LayerInputs, Method
from methods.parts.head_chunks import query_heads, select_in_chunks
from methods.parts.release import Release
from methods.parts.row_budgets import mean_row_budget
from methods.parts.vertical_slash import block_sums, count_to_pass, largest_mask, vertical_slash_mask

GAMMA = 0.9
COUNTED = 128
"""Tokens by which the release counts blocks, whatever their size."""


@register("flexprefill")
class FlexPrefill(Method):
    """Gives every query head one of two patterns, from the attention of the prompt's (or chunk's) last `block_size` queries.

    A head is query-aware if the block-pooled map predicts that attention per block column: if the square root of their
    Jensen-Shannon divergence is below tau. It then keeps, of the pooled map of all rows, the largest entries that sum to no
    more than gamma of it. Otherwise it is vertical-slash and keeps as many block columns, and as many block diagonals, as gamma
    of the attention takes. Both keep the first column, the main diagonal, and at least min_budget tokens' worth of columns and
    of diagonals. It needs no weights and no search.

    gamma: share of the attention, 0.9 (0.95 in the release's RULER runs). tau: 0.1. min_budget: tokens, 1024 as in the
    release's RULER scripts (its README: 512). The release's blocks are of 128 tokens. Prompts of at most two blocks or
    min_budget tokens are dense (`select` returns None). With a sparsity, gamma is calibrated, no length is dense, and the two
    floors together are held to what the sparsity leaves the average row; where that is less than two blocks, the first column
    isn't forced either.

    as_released: gamma 0.95, blocks of 128 tokens, floors that don't shrink; blocks count by 128 whatever their size; and a
    block without attention, here or in the estimate, makes the divergence NaN and the head vertical-slash.

    Deviations from the release: batches and chunks work; blocks count by block_size; a block without attention adds 0 to the
    divergence. Never waiting for the device has a price: both
    patterns are computed for all heads.
    """

    paper = "FlexPrefill, arXiv 2502.20766"
    knob = "gamma"
    family = "threshold"
    release = Release(
        "ByteDance-Seed/FlexPrefill",
        source="experiments/scripts/flex_prefill/ruler.sh",
        settings={"block_size": 128, "tau": 0.1, "min_budget": 1024},
        density={"gamma": 0.95},
        quirks={
            "a head with a block of no attention is vertical-slash": "flex_prefill/ops/flex_prefill_attention.py",
            "columns and diagonals are counted by 128 tokens": "flex_prefill/ops/flex_prefill_attention.py",
        },
    )
    reads_end = True

    def __init__(
        self,
        *,
        block_size: int = 64,
        sparsity: float | None = None,
        seed: int = 0,
        gamma: float | None = None,
        tau: float = 0.1,
        min_budget: int = 1024,
    ) -> None:
        super().__init__(block_size=block_size, sparsity=sparsity, seed=seed)
        self.one_of(gamma=gamma)
        if gamma is not None and not 0 < gamma <= 1:
            raise ValueError(f"gamma={gamma}: must be a share of the attention, above 0 and at most 1")
        if not tau >= 0:
            raise ValueError(f"tau={tau}: must be at least 0 (no head is query-aware); above 0.83 all are")
        if min_budget < 0:
            raise ValueError(f"min_budget={min_budget}: must be at least 0 tokens")
        self.gamma = GAMMA if gamma is None else gamma
        self.tau = tau
        self.min_budget = min_budget

    def calibrates(self) -> Knob | None:
        return Knob("gamma", low=0.01, high=0.9999, rising=True) if self.sparsity else None

    @torch.no_grad()
    def select(self, x: LayerInputs) -> BlockIndex | None:
        grid = self.grid(x)
        if self.sparsity == 0:
            return BlockIndex.full(x.q.shape[0], x.k.shape[1], device=x.q.device, **grid)
        if self.fixed_floors and x.prompt_tokens <= max(2 * self.block_size, self.min_budget):
            return None
        pooled_q = pool(x.q, self.block_size, ("mean",))
        pooled_k = x.block_vectors(self.block_size, lambda k, _: pool(k, self.block_size, ("mean",)), "means")
        columns, diagonals, aware = self._patterns(x, pooled_k, self._floor(self.prompt_grid(x)))
        group = x.q.shape[1] // x.k.shape[1]
        causal = causal_mask(grid["q_len"], grid["k_len"], self.block_size, self.block_size, x.q.device)

        def choose(kv: slice) -> Tensor:
            heads = query_heads(kv, group)
            scores = pooled_scores(pooled_q[:, heads], pooled_k[:, kv], scale=x.scale)
            probs = scores.masked_fill_(~causal, -float("inf")).softmax(-1)
            query_aware = largest_within(probs, self.gamma * probs.shape[-2]) & aware[:, heads, None, None]
            return query_aware | vertical_slash_mask(columns[:, heads], diagonals[:, heads], grid)

        return select_in_chunks(choose, x, grid)

    def _floor(self, grid: Grid) -> int:
        """Return how many block columns, and as many diagonals, a head keeps at least."""
        floor = -(-self.min_budget // self.block_size)
        if self.fixed_floors:
            return max(1, floor)
        return min(max(1, floor), int(mean_row_budget(self.required_sparsity(), **grid) / 2))

    def _patterns(self, x: LayerInputs, pooled_k: Tensor, floor: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the block columns and block diagonals of each head, bool [B,Hq,Nk], and which heads are query-aware [B,Hq]."""
        block, counted = self.block_size, COUNTED if self.as_released else self.block_size
        vertical, slash = vertical_slash(x.q, x.k, scale=x.scale, last_q=block)
        columns, diagonals = block_sums(vertical, block), block_sums(slash, block)
        last_q = x.q[:, :, -block:].mean(2, keepdim=True, dtype=columns.dtype)
        estimate = pooled_scores(last_q, pooled_k, scale=x.scale).softmax(-1).squeeze(2)
        aware = js_distance(estimate, columns) < self.tau
        if self.as_released:  # log 0 is infinite there, and 0 times that no number, which is below nothing
            aware &= ((estimate > 0) & (columns > 0)).all(-1)
        # a floor of 0 leaves no room for the column that a head keeps at least
        least, most = (floor, max(1, floor)), columns.shape[-1]
        tokens = count_to_pass(vertical, self.gamma), count_to_pass(slash, self.gamma)
        needed = tokens[0] // counted + min(floor, 1), tokens[1] // counted + 1
        counts = [n.masked_fill(aware, 0).clamp(min=low, max=most) for n, low in zip(needed, least, strict=True)]
        columns[..., 0] = float("inf")  # first of all columns, if any is kept
        diagonals[..., -1] = float("inf")
        return largest_mask(columns, counts[0]), largest_mask(diagonals, counts[1]), aware

    def knobs(self) -> dict[str, int | float | str | bool | None]:
        return {"gamma": self.gamma, "tau": self.tau, "min_budget": self.min_budget}


def js_distance(p: Tensor, q: Tensor) -> Tensor:
    """Return the square root of the Jensen-Shannon divergence of distributions p, q [...,N]: [...], from 0 to √ln 2 = 0.83."""
    middle = (p + q) / 2
    halves = [torch.xlogy(x, x) - torch.xlogy(x, middle) for x in (p, q)]
    return ((halves[0] + halves[1]).sum(-1) / 2).clamp(min=0).sqrt()


if __name__ == "__main__":
    from methods.parts.demo import demo

    demo("flexprefill")
