"""Pooling over blocks of tokens, several ways in one pass, with RoPE undone on the way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from torch import Tensor

from attention_kernels.backends import resolve_backend
from attention_kernels.pool.reference import pool_reference
from attention_kernels.rope import check_tables

Pool = Literal["mean", "max", "min"]

MOST_BLOCK, MOST_DIM = 256, 256


def pool(
    x: Tensor,
    block: int,
    how: Sequence[Pool],
    *,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    kernel: str = "auto",
) -> Tensor:
    """Pool x [B, H, P, D] over blocks of `block` tokens: float32 [B, H, ceil(P/block), len(how) * D] (float64 stays).

    how: ways to pool, concatenated in this order. A partial last block pools the tokens it has. cos, sin: float32
    [P, R/2], tables of the RoPE that is undone before pooling (attention_kernels.rope); without them x is pooled as it is.
    kernel: "triton" reads x once; "reference" is plain PyTorch; "auto" takes triton on CUDA, but for float64.
    """
    if x.ndim != 4 or x.shape[2] < 1:
        raise ValueError(f"x has shape {tuple(x.shape)}: expected [B,H,P,D] with at least one token")
    if not how or set(how) - set(get_args(Pool)):
        raise ValueError(f"how={tuple(how)}: must name one or more of {', '.join(get_args(Pool))}")
    if block < 1:
        raise ValueError(f"block={block}: must be at least 1 token")
    check_tables(cos, sin, x.shape[2], x.shape[3])
    if resolve_backend(kernel, x) == "triton":
        if block > MOST_BLOCK or x.shape[3] > MOST_DIM:
            raise ValueError(
                f"kernel=triton pools blocks of at most {MOST_BLOCK} tokens and heads of at most {MOST_DIM} elements, "
                f"not {block} and {x.shape[3]}; use kernel=reference"
            )
        from attention_kernels.pool.triton_kernel import pool_triton  # imported late: needs triton

        return pool_triton(x, block, tuple(how), cos, sin)
    return pool_reference(x, block, tuple(how), cos, sin)
