"""Where the last queries look: the attention of every key column (vertical) and of every diagonal (slash).

The estimate that MInference (arXiv 2407.02490) and FlexPrefill (arXiv 2502.20766) start from.
"""

from __future__ import annotations

from torch import Tensor

from attention_kernels.backends import resolve_backend
from attention_kernels.last_queries.reference import vertical_slash_reference

MOST_ROWS = 128
"""Queries that the Triton kernel takes: it holds their scores against a tile of keys at once."""


def vertical_slash(q: Tensor, k: Tensor, *, scale: float, last_q: int, kernel: str = "auto") -> tuple[Tensor, Tensor]:
    """Return column and diagonal means of softmax(causal(q kᵀ · scale)) over the last `last_q` queries (all, where fewer).

    q [B,Hq,Q,D], k [B,Hkv,K,D] -> vertical, slash [B,Hq,K] in float32 (float64 stays), each summing to 1. vertical[j] is
    the attention to key j; slash[j] that on the diagonal which the last query meets at key j, so slash[K-1] is what
    tokens give to themselves. 2·Hq·last_q·K·D FLOPs, twice with triton; the scores exist for a few KV heads at a time.
    kernel: reference, triton (at most 128 queries), or auto: triton on CUDA where it runs. Raises ValueError for less than one
    query, or more than triton takes.
    """
    if last_q < 1:
        raise ValueError(f"last_q={last_q}: must be at least 1 query")
    rows, auto = min(last_q, q.shape[2]), kernel == "auto"
    if resolve_backend(kernel, q) == "triton" and not (auto and rows > MOST_ROWS):
        if rows > MOST_ROWS:
            raise ValueError(f"last_q={last_q}: kernel=triton takes at most {MOST_ROWS} queries; use kernel=reference")
        from attention_kernels.last_queries.triton_kernel import vertical_slash_triton  # imported late: needs triton

        return vertical_slash_triton(q, k, scale=scale, rows=rows)
    return vertical_slash_reference(q, k, scale=scale, rows=rows)
