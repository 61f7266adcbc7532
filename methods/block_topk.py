"""Block top-k: the product of mean-pooled queries and keys ranks the blocks; nothing is trained."""

from __future__ import annotations

from kernels.block_index import BlockIndex
from kernels.selection import select_topk
from methods import register
from methods.base import LayerInputs, Method
from methods.pooling import pool_blocks


@register("block_topk")
class BlockTopK(Method):
    """score(i, j) = mean of query block i · mean of key block j × scale, in float32, post-RoPE; the highest are kept.

    The estimate that MoBA (which pools keys only) and MInference's block-sparse heads build on. Each query head ranks
    for itself; the diagonal block is always kept.
    """

    paper = "MInference 1.0 (block-sparse pattern), arXiv 2407.02490"
    knob = "top-k"
    family = "top-k"

    def __init__(self, *, block_size: int = 64, sparsity: float | None = None, seed: int = 0) -> None:
        super().__init__(block_size=block_size, sparsity=sparsity, seed=seed)
        self.required_sparsity()

    def select(self, x: LayerInputs) -> BlockIndex:
        q = pool_blocks(x.q, self.block_size, "mean").unflatten(1, (x.k.shape[1], -1))  # [B,Hkv,g,Mq,D]
        k = pool_blocks(x.k, self.block_size, "mean").unsqueeze(2)
        scores = (q @ k.transpose(-1, -2)).flatten(1, 2) * x.scale
        return select_topk(scores, self.budget(x), **self.grid(x))
