"""Oracle: the blocks that matter most in the step's true attention. Not for use: the bound that other methods are held to."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from attention_kernels.block_index import BlockIndex
from torch import Tensor

from methods.decode import register
from methods.decode.parts.base import DecodeMethod, StepInputs

Pool = Literal["max", "mass"]


@register("oracle")
class Oracle(DecodeMethod):
    """Keeps the best blocks of the step's true softmax, pooled over blocks, for each query head.

    It needs no weights, but reads every key: compare its accuracy, not its time.

    pool: "mass", the sum, which no other choice of as many blocks exceeds in kept attention mass; or "max", the highest
    probability. shared: one choice for the query heads of a KV head, by the mean over them (with "max" by the highest of them,
    SeerAttention-R's ground truth).
    """

    paper = "ground truth of SeerAttention-R, arXiv 2506.08889"
    family = "top-k"

    def __init__(
        self,
        *,
        block_size: int = 16,
        budget: int | None = None,
        sparsity: float | None = None,
        dense_layers: int = 0,
        seed: int = 0,
        pool: Pool = "mass",
        shared: bool = False,
    ) -> None:
        super().__init__(block_size=block_size, budget=budget, sparsity=sparsity, dense_layers=dense_layers, seed=seed)
        if pool not in get_args(Pool):
            raise ValueError(f"pool={pool}: must be one of {', '.join(get_args(Pool))}")
        self.pool = pool
        self.shared = shared

    def select(self, x: StepInputs, state: Any) -> BlockIndex | None:
        if self.keeps_all(x):
            return None
        return self.best(self.scores(x), x)

    def scores(self, x: StepInputs) -> Tensor:
        """Return the pooled attention of each sequence's own blocks, [B,H,Nk] float32, 0 past them."""
        blocks = -(-x.k.shape[2] // self.block_size)
        token = torch.arange(blocks * self.block_size, device=x.q.device)
        lengths = x.lengths()
        rows = []
        for b in range(x.q.shape[0]):  # one sequence at a time: keys are copied, in float32
            column = token if x.starts is None else token + x.starts[b]
            keys = x.k[b].index_select(1, column.clamp(max=x.k.shape[2] - 1))  # [Hkv,T,D], from its first key on
            q = x.q[b, :, 0].unflatten(0, (keys.shape[0], -1)).float()
            logits = (q @ keys.float().mT).flatten(0, 1) * x.scale
            probs = logits.masked_fill(token >= lengths[b], float("-inf")).softmax(-1).unflatten(-1, (blocks, -1))
            rows.append(probs.sum(-1) if self.pool == "mass" else probs.amax(-1))
        scores = torch.stack(rows)
        if not self.shared:
            return scores
        grouped = scores.unflatten(1, (x.k.shape[1], -1))
        return grouped.mean(2) if self.pool == "mass" else grouped.amax(2)

    def knobs(self) -> dict[str, int | float | str | bool | None]:
        return super().knobs() | {"pool": self.pool, "shared": self.shared}


if __name__ == "__main__":
    from methods.decode.parts.demo import demo

    demo("oracle")
