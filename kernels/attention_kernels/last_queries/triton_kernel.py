"""Column and diagonal means of the last queries' attention in Triton: two passes over the keys, one over what the second left.

The first pass finds each query's log-sum-exp. The second makes the probabilities tile by tile, sums them by key, and lays
them down by distance, so that the third sums a diagonal by reading a column. Nothing is added atomically: the same sums twice.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from attention_kernels.last_queries.reference import SCORES
from attention_kernels.tiles import power_of_two, prefetch_depth, shared_bytes

LOWEST = tl.constexpr(-1.0e30)
"""Where a maximum starts: below every score, and finite, so that a span of keys that a query doesn't see makes no NaN."""
KEYS, WIDE_KEYS = 128, 32
"""Keys of a tile, and those of float32, whose operands all lie in registers."""
SPANS = 32
"""Parts of the keys that the first pass looks at side by side."""


@triton.jit
def _scores(
    Q,
    K,
    row,
    at,
    rows,
    q_len,
    k_len,
    stride_q,
    stride_k,
    scale_log2e,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Return scores in base 2 [BLOCK_R, BLOCK_N], -inf where there is no query, no key, or a key of the future."""
    offs_d = tl.arange(0, BLOCK_D)
    q_at = (q_len - rows + row).to(tl.int64)
    q = tl.load(Q + q_at[:, None] * stride_q + offs_d[None, :], mask=(row < rows)[:, None] & (offs_d < D)[None, :], other=0.0)
    k_mask = (at < k_len)[:, None] & (offs_d < D)[None, :]
    k = tl.load(K + at.to(tl.int64)[:, None] * stride_k + offs_d[None, :], mask=k_mask, other=0.0)
    s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale_log2e
    seen = (at[None, :] <= (k_len - rows + row)[:, None]) & (row < rows)[:, None]
    return tl.where(seen, s, -float("inf")), seen


@triton.jit(do_not_specialize=["heads", "group", "rows", "q_len", "k_len", "span"])
def _log_sum_exp(
    Q,
    K,
    Best,
    Total,
    sqb,
    sqh,
    sqm,
    skb,
    skh,
    skn,
    heads,
    group,
    rows,
    q_len,
    k_len,
    span,
    scale_log2e,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):
    b = (tl.program_id(0) // heads).to(tl.int64)
    h = (tl.program_id(0) % heads).to(tl.int64)
    row = tl.arange(0, BLOCK_R)
    best = tl.full([BLOCK_R], LOWEST, tl.float32)
    total = tl.zeros([BLOCK_R], tl.float32)
    first = tl.program_id(1) * span
    for at0 in range(first, tl.minimum(first + span, k_len), BLOCK_N):
        at = at0 + tl.arange(0, BLOCK_N)
        s, _ = _scores(
            Q + b * sqb + h * sqh,
            K + b * skb + h // group * skh,
            row,
            at,
            rows,
            q_len,
            k_len,
            sqm,
            skn,
            scale_log2e,
            D,
            BLOCK_D,
            PRECISION,
        )
        top = tl.maximum(best, tl.max(s, 1))
        total = total * tl.exp2(best - top) + tl.sum(tl.exp2(s - top[:, None]), 1)
        best = top
    out = (tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)).to(tl.int64) * BLOCK_R + row
    tl.store(Best + out, best)
    tl.store(Total + out, total)


@triton.jit(do_not_specialize=["heads", "group", "rows", "q_len", "k_len"])
def _columns(
    Q,
    K,
    Lse,
    Vertical,
    Laid,
    sqb,
    sqh,
    sqm,
    skb,
    skh,
    skn,
    heads,
    group,
    rows,
    q_len,
    k_len,
    scale_log2e,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):
    b = (tl.program_id(0) // heads).to(tl.int64)
    h = (tl.program_id(0) % heads).to(tl.int64)
    row = tl.arange(0, BLOCK_R)
    at = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    s, seen = _scores(
        Q + b * sqb + h * sqh,
        K + b * skb + h // group * skh,
        row,
        at,
        rows,
        q_len,
        k_len,
        sqm,
        skn,
        scale_log2e,
        D,
        BLOCK_D,
        PRECISION,
    )
    lse = tl.load(Lse + tl.program_id(0).to(tl.int64) * BLOCK_R + row, mask=row < rows, other=0.0)
    p = tl.where(seen, tl.exp2(s - lse[:, None]), 0.0)
    tl.store(Vertical + tl.program_id(0).to(tl.int64) * k_len + at, tl.sum(p, 0) / rows, mask=at < k_len)
    distance = (k_len - rows + row)[:, None] - at[None, :]
    laid = Laid + (tl.program_id(0).to(tl.int64) * rows + row)[:, None] * k_len + distance
    tl.store(laid, p, mask=seen & (at < k_len)[None, :])


@triton.jit(do_not_specialize=["rows", "k_len"])
def _diagonals(Laid, Slash, rows, k_len, BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr):
    row = tl.arange(0, BLOCK_R)
    distance = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = (row < rows)[:, None] & (distance[None, :] <= (k_len - rows + row)[:, None])  # what no query laid down is not read
    laid = Laid + (tl.program_id(0).to(tl.int64) * rows + row)[:, None] * k_len + distance[None, :]
    total = tl.sum(tl.load(laid, mask=inside, other=0.0), 0) / rows
    tl.store(Slash + tl.program_id(0).to(tl.int64) * k_len + (k_len - 1 - distance), total, mask=distance < k_len)


def vertical_slash_triton(q: Tensor, k: Tensor, *, scale: float, rows: int) -> tuple[Tensor, Tensor]:
    """Run `attention_kernels.last_queries.vertical_slash` in Triton. `rows` is the number of queries."""
    q, k = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k))
    (batch, heads, q_len, dim), (kv_heads, k_len) = q.shape, k.shape[1:3]
    group, block_r = heads // kv_heads, max(16, power_of_two(rows))
    keys = KEYS if q.dtype.itemsize == 2 else WIDE_KEYS
    span = -(-k_len // SPANS // keys) * keys
    spans = -(-k_len // span)
    best, total = (torch.empty(batch * heads, spans, block_r, dtype=torch.float32, device=q.device) for _ in range(2))
    vertical, slash = (torch.empty(batch, heads, k_len, dtype=torch.float32, device=q.device) for _ in range(2))
    step = max(1, SCORES // (group * rows * k_len))  # KV heads of one sample whose probabilities are laid down at once
    laid = torch.empty(min(step, kv_heads) * group * rows * k_len, dtype=torch.float32, device=q.device)
    shape = {
        "D": dim,
        "BLOCK_D": power_of_two(dim),
        "BLOCK_R": block_r,
        "BLOCK_N": keys,
        "PRECISION": "ieee" if q.dtype == torch.float32 else "tf32",
        "num_warps": 4 if block_r <= 64 else 8,
        "num_stages": prefetch_depth(block_r, keys, power_of_two(dim), q.dtype.itemsize, shared_bytes(q.device)),
    }
    strides, log2e = (*q.stride()[:3], *k.stride()[:3]), scale * math.log2(math.e)
    with torch.cuda.device_of(q):  # Triton launches on the current device
        _log_sum_exp[(batch * heads, spans)](
            q, k, best, total, *strides, heads, group, rows, q_len, k_len, span, log2e, **shape
        )
        top = best.amax(1)
        lse = (top + (total * torch.exp2(best - top[:, None])).sum(1).log2()).view(batch, heads, block_r)
        for b in range(batch):
            for first in range(0, kv_heads, step):
                kv = slice(first, first + step)
                heads_now = slice(first * group, (first + step) * group)
                sums, tiles = vertical[b, heads_now], -(-k_len // keys)
                _columns[(len(sums), tiles)](
                    q[b, heads_now],
                    k[b, kv],
                    lse[b, heads_now],
                    sums,
                    laid,
                    *strides,
                    len(sums),
                    group,
                    rows,
                    q_len,
                    k_len,
                    log2e,
                    **shape,
                )
                _diagonals[(len(sums), -(-k_len // KEYS))](
                    laid, slash[b, heads_now], rows, k_len, BLOCK_R=block_r, BLOCK_N=KEYS, num_warps=4
                )
    return vertical, slash
