"""Queries against mean keys in Triton: one program takes a block of queries past all mean keys before it.

Floor: one product of the queries with the mean keys, block_size times less than Q Kᵀ. Sums go down the columns, so no row
needs a first pass: every column has its own maximum.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from attention_kernels.tiles import power_of_two, prefetch_depth, shared_bytes

LOG2E = tl.constexpr(math.log2(math.e))


@triton.jit
def _columns(
    q,
    k_base,
    skn,
    start,
    ended,
    own,
    ends,
    scale_log2e,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    K_BLOCK: tl.constexpr,
    MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Return log-sum-exp [BLOCK_N] down the columns of one tile; `own` are the rows that exist, `ended` columns exist for
    one."""
    cols = start + tl.arange(0, BLOCK_N)
    inside = (tl.arange(0, BLOCK_D) < D)[None, :]
    if MASKED:
        inside = inside & (cols < ended)[:, None]
    k = tl.load(k_base + tl.cast(start, tl.int64) * skn, mask=inside, other=0.0)
    s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale_log2e
    seen = own[:, None]
    if MASKED:
        seen = seen & (((cols + 1) * K_BLOCK - 1)[None, :] <= ends[:, None])
    s = tl.where(seen, s, -float("inf"))
    top = tl.max(s, 0)
    hidden = top == -float("inf")  # from all rows
    top = tl.where(hidden, 0.0, top)  # no NaN on the way
    total = tl.where(hidden, 1.0, tl.sum(tl.exp2(s - top[None, :]), 0))
    return tl.where(hidden, -float("inf"), (top + tl.log2(total)) / LOG2E)


# What changes with a prompt's length is not specialised on: no compiling for each length.
@triton.jit(do_not_specialize=["q_len", "k_len", "rows_total", "cols_total"])
def _key_mean_map(
    Q,
    K,
    Out,
    sqb,
    sqh,
    sqm,
    skb,
    skh,
    skn,
    heads,
    group,
    q_len,
    k_len,
    rows_total,
    cols_total,
    scale_log2e,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    Q_BLOCK: tl.constexpr,
    K_BLOCK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):
    row = tl.num_programs(0) - 1 - tl.program_id(0)  # the longest rows start first
    b = (tl.program_id(1) // heads).to(tl.int64)
    h = (tl.program_id(1) % heads).to(tl.int64)
    offs_m, offs_d = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    queries = row * Q_BLOCK + offs_m
    own = (offs_m < Q_BLOCK) & (queries < q_len)
    q = tl.load(
        Q + b * sqb + h * sqh + queries.to(tl.int64)[:, None] * sqm + offs_d[None, :],
        mask=own[:, None] & (offs_d < D)[None, :],
        other=0.0,
    )
    k_base = K + b * skb + (h // group) * skh + tl.arange(0, BLOCK_N)[:, None] * skn + offs_d[None, :]
    line = Out + ((b * heads + h) * rows_total + row) * cols_total + tl.arange(0, BLOCK_N)
    position = queries + (k_len - q_len)
    first = row * Q_BLOCK + (k_len - q_len)
    last = tl.minimum(row * Q_BLOCK + Q_BLOCK, q_len) - 1 + (k_len - q_len)
    ended = (last + 1) // K_BLOCK  # key blocks that some row sees
    unmasked = (first + 1) // K_BLOCK // BLOCK_N * BLOCK_N  # in tiles before, every row sees all
    for start in range(0, unmasked, BLOCK_N):
        scores = _columns(
            q, k_base, skn, start, ended, own, position, scale_log2e, D, BLOCK_D, BLOCK_N, K_BLOCK, False, PRECISION
        )
        tl.store(line + start, scores)
    for start in range(unmasked, ended, BLOCK_N):
        scores = _columns(
            q, k_base, skn, start, ended, own, position, scale_log2e, D, BLOCK_D, BLOCK_N, K_BLOCK, True, PRECISION
        )
        tl.store(line + start, scores, mask=start + tl.arange(0, BLOCK_N) < ended)


def key_mean_map_triton(q: Tensor, means: Tensor, *, q_block: int, k_block: int, k_len: int, scale: float) -> Tensor:
    """Run `attention_kernels.key_mean_map.key_mean_map` in Triton."""
    q, means = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, means))
    batch, heads, q_len, dim = q.shape
    rows, cols, pad = -(-q_len // q_block), means.shape[2], max(16, power_of_two(dim))
    tile_rows, tile_cols = max(16, power_of_two(q_block)), 16 if q.dtype == torch.float32 else 64
    depth = prefetch_depth(tile_rows, tile_cols, pad, q.element_size(), shared_bytes(q.device))
    out = torch.full((batch, heads, rows, cols), -float("inf"), dtype=torch.float32, device=q.device)
    with torch.cuda.device_of(q):  # Triton launches on the current device
        _key_mean_map[(rows, batch * heads)](
            q,
            means,
            out,
            *q.stride()[:3],
            *means.stride()[:3],
            heads,
            heads // means.shape[1],
            q_len,
            k_len,
            rows,
            cols,
            scale * LOG2E.value,
            D=dim,
            BLOCK_D=pad,
            Q_BLOCK=q_block,
            K_BLOCK=k_block,
            BLOCK_M=tile_rows,
            BLOCK_N=tile_cols,
            PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
            num_warps=8 if tile_rows == 128 else 4,
            num_stages=depth,
        )
    return out
