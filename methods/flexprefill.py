"""FlexPrefill: the last queries say, head by head, whether columns and diagonals will do or a pooled map is needed."""

from __future__ import annotations

import torch
from attention_kernels.block_index import BlockIndex, causal_mask
from attention_kernels.last_queries import vertical_slash
from attention_kernels.pool import pool
from attention_kernels.selection.reference import pooled_scores
from torch import Tensor

from methods import register
from methods.parts.base import Grid, Knob, LayerInputs, Method
from methods.parts.head_chunks import query_heads, select_in_chunks
from methods.parts.row_budgets import mean_row_budget
from methods.parts.vertical_slash import block_sums, covering, largest, vertical_slash_mask

GAMMA = 0.9


@register("flexprefill")
class FlexPrefill(Method):
    """Every query head on its own, from the attention of the prompt's (or chunk's) last `block_size` queries:

    If the block-pooled map predicts their attention per block column (square root of the Jensen-Shannon divergence below
    tau), the head is query-aware: of the pooled map of all rows, the largest entries that sum to no more than gamma of it
    are kept. If not, it is vertical-slash: as many block columns, and as many block diagonals, as gamma of the attention
    takes. Both keep the first column, the main diagonal, and at least min_budget tokens' worth of columns and of diagonals.

    gamma: 0.9 (0.95 in its RULER runs). tau: 0.1. min_budget: 1024 tokens as in its RULER scripts (README: 512). Its
    block_size is 128. Prompts of at most two blocks or min_budget tokens are dense (select gives None). With a sparsity,
    gamma is calibrated, no length is dense, and the two floors together are held to what the sparsity leaves the average
    row; where that is less than two blocks, the first column isn't forced either.

    Unlike the released code: batches and chunks work; blocks count by block_size (there always 128); a block without
    attention adds 0 to the divergence (there NaN, hence vertical-slash). Never waiting for the device has a price: both
    branches are computed for all heads.
    """

    paper = "FlexPrefill, arXiv 2502.20766"
    knob = "gamma"
    family = "threshold"
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
        if self.sparsity is None and grid["k_len"] <= max(2 * self.block_size, self.min_budget):
            return None
        pooled_q, pooled_k = (pool(tokens, self.block_size, ("mean",)) for tokens in (x.q, x.k))
        columns, diagonals, aware = self._patterns(x, pooled_k, self._floor(grid))
        group = x.q.shape[1] // x.k.shape[1]
        causal = causal_mask(grid["q_len"], grid["k_len"], self.block_size, self.block_size, x.q.device)

        def choose(kv: slice) -> Tensor:
            heads = query_heads(kv, group)
            scores = pooled_scores(pooled_q[:, heads], pooled_k[:, kv], scale=x.scale)
            probs = scores.masked_fill_(~causal, -float("inf")).softmax(-1)
            kept = within(probs, self.gamma * probs.shape[-2]) & aware[:, heads, None, None]
            return kept | vertical_slash_mask(columns[:, heads], diagonals[:, heads], grid)

        return select_in_chunks(choose, x, grid)

    def _floor(self, grid: Grid) -> int:
        """Columns, and as many diagonals, that a head keeps at least."""
        floor = -(-self.min_budget // self.block_size)
        if self.sparsity is None:
            return max(1, floor)
        return min(max(1, floor), int(mean_row_budget(self.sparsity, **grid) / 2))

    def _patterns(self, x: LayerInputs, pooled_k: Tensor, floor: int) -> tuple[Tensor, Tensor, Tensor]:
        """Block columns and block diagonals that each head keeps, bool [B,Hq,Nk], and which heads are query-aware [B,Hq]."""
        block = self.block_size
        vertical, slash = vertical_slash(x.q, x.k, scale=x.scale, last_q=block)
        columns, diagonals = block_sums(vertical, block), block_sums(slash, block)
        last_q = x.q[:, :, -block:].mean(2, keepdim=True, dtype=columns.dtype)
        estimate = pooled_scores(last_q, pooled_k, scale=x.scale).softmax(-1).squeeze(2)
        aware = js_distance(estimate, columns) < self.tau
        # a floor of 0 leaves no room for the column that a head keeps at least
        least, most = (floor, max(1, floor)), columns.shape[-1]
        needed = (covering(vertical, self.gamma) // block + min(floor, 1), covering(slash, self.gamma) // block + 1)
        counts = [n.masked_fill(aware, 0).clamp(min=low, max=most) for n, low in zip(needed, least, strict=True)]
        columns[..., 0] = float("inf")  # first of all columns, if any is kept
        diagonals[..., -1] = float("inf")
        return largest(columns, counts[0]), largest(diagonals, counts[1]), aware

    def knobs(self) -> dict[str, int | float | str | bool | None]:
        return {"gamma": self.gamma, "tau": self.tau, "min_budget": self.min_budget}


def js_distance(p: Tensor, q: Tensor) -> Tensor:
    """Square root of the Jensen-Shannon divergence (natural logarithm) of distributions p, q [...,N]: [...], 0 to 0.83."""
    middle = (p + q) / 2
    halves = [torch.xlogy(x, x) - torch.xlogy(x, middle) for x in (p, q)]
    return ((halves[0] + halves[1]).sum(-1) / 2).clamp(min=0).sqrt()


def within(probs: Tensor, mass: float) -> Tensor:
    """bool like probs [B,H,Mq,Nk]: the largest entries of each head's whole map, as many as sum to no more than `mass`.

    Equal entries are kept or left together. A search for the smallest one kept, bit by bit (numbers above 0 order as their
    bits do): it reads the map 31 times, which is cheaper than sorting it and needs no room.
    """
    double = probs.dtype == torch.float64
    bits = probs.view(torch.int64 if double else torch.int32)
    steps = 63 if double else 31
    low = torch.zeros(*probs.shape[:2], 1, 1, dtype=bits.dtype, device=probs.device)
    high = torch.full_like(low, 1 << (steps - 1))  # the bits of 2.0: no probability is as large
    for _ in range(steps):
        middle = low + (high - low) // 2
        fits = torch.where(bits >= middle, probs, 0).sum((-2, -1), keepdim=True) <= mass
        low, high = torch.where(fits, low, middle + 1), torch.where(fits, middle, high)
    return bits >= high


if __name__ == "__main__":
    from methods.parts.demo import demo

    demo("flexprefill")
