"""Pooling over blocks of tokens."""

from __future__ import annotations

from torch import Tensor

from kernels.pool import Pool
from kernels.pool.reference import pool_one

__all__ = ["Pool", "pool_blocks"]


def pool_blocks(x: Tensor, block: int, how: Pool) -> Tensor:
    """x [...,P,D] -> [...,ceil(P/block),D] in float32 (float64 stays); a partial last block pools the tokens it has.

    Plain PyTorch for tensors of any shape; queries and keys of a layer pool faster with `kernels.pool.pool`.
    """
    return pool_one(x, block, how)
