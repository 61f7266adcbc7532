"""Block top-k: the products of pooled queries and pooled keys rank the blocks; nothing is trained."""

from __future__ import annotations

from typing import Literal, get_args

from attention_kernels.block_index import BlockIndex, causal_mask
from attention_kernels.gated_selection import Side, select_gated
from attention_kernels.pool import pool as pool_blocks
from attention_kernels.pool import pool_pair
from attention_kernels.selection import select_from_pooled
from torch import Tensor

from methods import register
from methods.parts.base import LayerInputs
from methods.parts.scored_method import ScoredMethod, Selection

Pool = Literal["mean", "max"]


@register("block_topk")
class BlockTopK(ScoredMethod):
    """Keeps the blocks of highest score(i, j) = pooled query block i · pooled key block j × scale, in float32 and post-RoPE.

    It is the estimate that MInference's block-sparse heads (arXiv 2407.02490) and MoBA, which pools keys only, build on, as a
    method of its own. The diagonal block is always kept. It needs no weights and no search.

    pool: "mean", or "max", the largest of each element, of queries and of keys, before the product.
    shared: the query heads of a KV head rank together, by the mean of their scores; otherwise each head ranks for itself.
    selection: the rule that turns the softmax of a row's scores into blocks (see `ScoredMethod`). With the rule of a gate, the
    two methods differ in their scores alone.
    """

    paper = "MInference 1.0 (block-sparse pattern), arXiv 2407.02490"
    knob = "top-k | threshold"
    family = "top-k"

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
        blocks: int | None = None,
    ) -> None:
        super().__init__(
            block_size=block_size,
            sparsity=sparsity,
            seed=seed,
            selection=selection,
            threshold=threshold,
            nz_ratio=nz_ratio,
            last=last,
            blocks=blocks,
        )
        if pool not in get_args(Pool):
            raise ValueError(f"pool={pool}: must be one of {', '.join(get_args(Pool))}")
        self.pool = pool
        self.shared = shared

    def scores(self, x: LayerInputs) -> Tensor:
        """Return the softmax of the scores, [B,Hq,Mq,Nk] float32, or with shared [B,Hkv,Mq,Nk]."""
        q, k = (self._pooled(tokens).float() for tokens in (x.q, x.k))
        logits = q.unflatten(1, (k.shape[1], -1)) @ k[:, :, None].mT * x.scale  # [B,Hkv,G,Mq,Nk]
        logits = logits.mean(2) if self.shared else logits.flatten(1, 2)
        future = ~causal_mask(**self.grid(x), device=x.q.device)
        return logits.masked_fill(future, float("-inf")).softmax(-1)

    def select(self, x: LayerInputs) -> BlockIndex:
        grid = self.grid(x)
        share = x.q.shape[1] // x.k.shape[1] if self.shared else 1
        if x.prompt is None:
            q, k = pool_pair(x.q, x.k, self.block_size, (self.pool,), (self.pool,))
            return select_gated(Side(q), Side(k), scale=x.scale, share=share, **self.rule(x), **grid)
        q, k = self._pooled(x.q), x.block_vectors(self.block_size, lambda keys, _: self._pooled(keys), self.pool)
        return select_from_pooled(q, k, scale=x.scale, share=share, **self.rule(x), **grid)

    def _pooled(self, tokens: Tensor) -> Tensor:
        """Return the blocks of queries or keys [B,H,P,D], pooled: [B,H,ceil(P/block),D]."""
        return pool_blocks(tokens, self.block_size, (self.pool,))

    def knobs(self) -> dict[str, int | float | str | bool | None]:
        return {
            "pool": self.pool,
            "shared": self.shared,
            "selection": self.selection,
            "threshold": self.threshold,
            "nz_ratio": self.nz_ratio,
            "last": self.full_rows,
            "blocks": self.blocks,
        }


if __name__ == "__main__":
    from methods.parts.demo import demo

    demo("block_topk")
