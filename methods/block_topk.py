"""Block top-k: the product of pooled queries and keys ranks the blocks; nothing is trained."""

from __future__ import annotations

from typing import ClassVar, Literal, get_args

from attention_kernels.block_index import BlockIndex, causal_mask
from attention_kernels.pool import pool as pool_blocks
from attention_kernels.selection import select_from_pooled
from torch import Tensor

from methods import register
from methods.parts.base import LayerInputs
from methods.parts.scored_method import ScoredMethod, Selection

Pool = Literal["mean", "max"]


@register("block_topk")
class BlockTopK(ScoredMethod):
    """score(i, j) = pooled query block i · pooled key block j × scale, in float32, post-RoPE; the highest are kept.

    pool="mean", the default: the estimate that MoBA (which pools keys only) and MInference's block-sparse heads build on.
    pool="max": the largest of each element, of queries and of keys, before the product. Each query head ranks for itself,
    or with shared the query heads of a KV head together, by the mean of their scores; the diagonal block is always kept.
    selection: which rule turns the softmax of a row's scores into blocks (methods.parts.scored_method); by the same rule as a gate's, the
    two differ in their scores alone.
    """

    paper = "MInference 1.0 (block-sparse pattern), arXiv 2407.02490"
    knob = "top-k | threshold"
    family = "top-k"
    added_knobs: ClassVar = {"selection": "topk", "threshold": None, "nz_ratio": None, "last": 0}

    def __init__(
        self,
        *,
        block_size: int = 64,
        sparsity: float | None = None,
        seed: int = 0,
        pool: Pool = "mean",
        shared: bool = False,
        selection: Selection = "topk",
        threshold: float | None = None,
        nz_ratio: float | None = None,
        last: int = 0,
    ) -> None:
        super().__init__(
            block_size=block_size,
            sparsity=sparsity,
            seed=seed,
            selection=selection,
            threshold=threshold,
            nz_ratio=nz_ratio,
            last=last,
        )
        if pool not in get_args(Pool):
            raise ValueError(f"pool={pool}: must be one of {', '.join(get_args(Pool))}")
        self.pool = pool
        self.shared = shared

    def scores(self, x: LayerInputs) -> Tensor:
        """The softmax of what the blocks are ranked by, one map a query head; with shared, one a KV head."""
        q, k = (pool_blocks(tokens, self.block_size, (self.pool,)).float() for tokens in (x.q, x.k))
        logits = q.unflatten(1, (k.shape[1], -1)) @ k[:, :, None].mT * x.scale  # [B,Hkv,G,Mq,Nk]
        logits = logits.mean(2) if self.shared else logits.flatten(1, 2)
        future = ~causal_mask(**self.grid(x), device=x.q.device)
        return logits.masked_fill(future, float("-inf")).softmax(-1)

    def select(self, x: LayerInputs) -> BlockIndex:
        grid = self.grid(x)
        q, k = (pool_blocks(tokens, self.block_size, (self.pool,)) for tokens in (x.q, x.k))
        share = x.q.shape[1] // x.k.shape[1] if self.shared else 1
        return self.finish(select_from_pooled(q, k, scale=x.scale, share=share, **self.rule(x, grid), **grid), grid)

    def knobs(self) -> dict[str, int | float | str | bool | None]:
        return {
            "pool": self.pool,
            "shared": self.shared,
            "selection": self.selection,
            "threshold": self.threshold,
            "nz_ratio": self.nz_ratio,
            "last": self.full_rows,
        }


if __name__ == "__main__":
    from methods.parts.demo import demo

    demo("block_topk")
