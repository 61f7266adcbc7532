"""Pooling over blocks of tokens."""

from __future__ import annotations

from attention_kernels.pool import Pool
from attention_kernels.pool.reference import pool_one
from torch import Tensor

__all__ = ["Pool", "pool_blocks"]


def pool_blocks(x: Tensor, block: int, how: Pool) -> Tensor:
    """Return x [...,P,D] pooled over blocks: [...,ceil(P/block),D] float32 (float64 stays).

    A partial last block pools the tokens it has. Raises ValueError for another `how` than mean, max and min, no token, or a
    block of none.

    Plain PyTorch for tensors of any shape; queries and keys of a layer pool faster with `attention_kernels.pool.pool`.
    """
    return pool_one(x, block, how)
