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
        _check_triton(block, x.shape[3])
        from attention_kernels.pool.triton_kernel import pool_triton  # imported late: needs triton

        return pool_triton(x, block, tuple(how), cos, sin)
    return pool_reference(x, block, tuple(how), cos, sin)


def pool_pair(
    q: Tensor,
    k: Tensor,
    block: int,
    q_how: Sequence[Pool],
    k_how: Sequence[Pool],
    *,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    kernel: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Pool queries q [B, Hq, Q, D] and keys k [B, Hkv, K, D], each as `pool` does; with Triton in one launch.

    The queries are the last Q of the K tokens. cos, sin: tables [K, R/2] of all of them. Raises ValueError as `pool` does.
    """
    if q.ndim == k.ndim == 4 and q.dtype == k.dtype and q.shape[::3] == k.shape[::3] and 1 <= q.shape[2] <= k.shape[2]:
        check_tables(cos, sin, k.shape[2], k.shape[3])
        if resolve_backend(kernel, q) == "triton" and q_how and k_how and not set((*q_how, *k_how)) - set(get_args(Pool)):
            _check_triton(block, q.shape[3])
            from attention_kernels.pool.triton_kernel import pool_pair_triton  # imported late: needs triton

            return pool_pair_triton(q, k, block, tuple(q_how), tuple(k_how), cos, sin)
    else:
        raise ValueError(
            f"q {q.dtype} {tuple(q.shape)}, k {k.dtype} {tuple(k.shape)}: expected [B,Hq,Q,D], the last Q of [B,Hkv,K,D]"
        )
    last = k.shape[2] - q.shape[2]
    of_q = {} if cos is None or sin is None else {"cos": cos[last:], "sin": sin[last:]}
    return pool(q, block, q_how, kernel=kernel, **of_q), pool(k, block, k_how, cos=cos, sin=sin, kernel=kernel)


def _check_triton(block: int, dim: int) -> None:
    """Raise ValueError for blocks or heads that Triton does not pool."""
    if block > MOST_BLOCK or dim > MOST_DIM:
        raise ValueError(
            f"kernel=triton pools blocks of at most {MOST_BLOCK} tokens and heads of at most {MOST_DIM} elements, "
            f"not {block} and {dim}; use kernel=reference"
        )
