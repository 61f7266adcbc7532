"""The pooled attention map in Triton: log-sum-exp of every query, then every tile once more for its blocks' maxima or sums.

Floor: two products Q Kᵀ, as many FLOPs as one dense forward; the exponentials of the first pass come on top (and those of
the second for sums; a maximum needs one a block). Tiles on the causal diagonal are the last of a row: only they are masked.

A head dim too wide for one product is read in pieces of BLOCK_D elements, queries and keys both anew for every tile.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from attention_kernels.block_map.tuning import LOG_SUM_EXP, POOL, tile_for
from attention_kernels.tiles import power_of_two

LOG2E = tl.constexpr(math.log2(math.e))


@triton.jit
def _load_queries(
    Q,
    sqb,
    sqh,
    sqm,
    heads,
    q_len,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Return batch, head, first row, queries [BLOCK_M, BLOCK_D]; the longest rows start first. In pieces: pointers to the
    first."""
    first = (tl.num_programs(0) - 1 - tl.program_id(0)) * BLOCK_M
    b = (tl.program_id(1) // heads).to(tl.int64)
    h = (tl.program_id(1) % heads).to(tl.int64)
    offs_m = first + tl.arange(0, BLOCK_M)
    offs_d = tl.arange(0, BLOCK_D)
    if D > BLOCK_D:  # rows past the end read the last one, and weigh nothing later
        rows = tl.minimum(offs_m, q_len - 1).to(tl.int64)
        q = Q + b * sqb + h * sqh + rows[:, None] * sqm + offs_d[None, :]
    else:
        mask = (offs_m < q_len)[:, None] & (offs_d < D)[None, :]
        q = tl.load(Q + b * sqb + h * sqh + offs_m.to(tl.int64)[:, None] * sqm + offs_d[None, :], mask=mask, other=0.0)
    return b, h, first, q


@triton.jit
def _product(
    q,
    k_base,
    skn,
    start,
    k_len,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Return q · k [BLOCK_M, BLOCK_N] of keys from `start` on, in pieces of the head dim; q and k_base point to the first
    piece."""
    offs_n = tl.arange(0, BLOCK_N)
    rows = tl.cast(start, tl.int64)
    if MASKED:  # keys past the end read the last one: they are in the future of every row
        k_tile = k_base + (tl.minimum(rows + offs_n, k_len - 1) - offs_n)[:, None] * skn
    else:
        k_tile = k_base + rows * skn
    s = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for piece in range(0, D, BLOCK_D):
        if D % BLOCK_D == 0:
            q_part = tl.load(q + piece)
            k_part = tl.load(k_tile + piece)
        else:
            inside = (piece + tl.arange(0, BLOCK_D) < D)[None, :]
            q_part = tl.load(q + piece, mask=inside, other=0.0)
            k_part = tl.load(k_tile + piece, mask=inside, other=0.0)
        s = tl.dot(q_part, tl.trans(k_part), s, input_precision=PRECISION)
    return s


@triton.jit
def _scores(
    q,
    k_base,
    skn,
    start,
    offset,
    k_len,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Return scores [BLOCK_M, BLOCK_N], not scaled, of keys from `start` on; row i sees keys up to offset + i. -inf in the
    future."""
    offs_n = tl.arange(0, BLOCK_N)
    if D > BLOCK_D:
        s = _product(q, k_base, skn, start, k_len, D, BLOCK_D, BLOCK_M, BLOCK_N, MASKED, PRECISION)
    else:
        k_tile = k_base + tl.cast(start, tl.int64) * skn
        if MASKED:
            mask = (start + offs_n < k_len)[:, None] & (tl.arange(0, BLOCK_D) < D)[None, :]
            k = tl.load(k_tile, mask=mask, other=0.0)
        elif D < BLOCK_D:
            k = tl.load(k_tile, mask=(tl.arange(0, BLOCK_D) < D)[None, :], other=0.0)
        else:
            k = tl.load(k_tile)
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    if MASKED:
        s = tl.where((start + offs_n)[None, :] <= (offset + tl.arange(0, BLOCK_M))[:, None], s, -float("inf"))
    return s


@triton.jit
def _fold(best, total, s, scale_log2e):
    """Take scores [BLOCK_M, BLOCK_N] into each row's largest and its sum of exponentials relative to that."""
    top = tl.maximum(best, tl.max(s, 1) * scale_log2e)
    return top, total * tl.exp2(best - top) + tl.sum(tl.exp2(s * scale_log2e - top[:, None]), 1)


# What changes with a prompt's length is not specialised on: no compiling for each length.
@triton.jit(do_not_specialize=["q_len", "k_len"])
def _log_sum_exp(
    Q,
    K,
    L,
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
    scale_log2e,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):
    b, h, first, q = _load_queries(Q, sqb, sqh, sqm, heads, q_len, D, BLOCK_D, BLOCK_M)
    k_base = K + b * skb + (h // group) * skh + tl.arange(0, BLOCK_N)[:, None] * skn + tl.arange(0, BLOCK_D)[None, :]
    offset = first + (k_len - q_len)
    unmasked = (offset + 1) // BLOCK_N * BLOCK_N  # keys before are seen by every row
    end = tl.minimum(offset + BLOCK_M, k_len)
    best = tl.full([BLOCK_M], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    for start in range(0, unmasked, BLOCK_N):
        s = _scores(q, k_base, skn, start, offset, k_len, D, BLOCK_D, BLOCK_M, BLOCK_N, False, PRECISION)
        best, total = _fold(best, total, s, scale_log2e)
    for start in range(unmasked, end, BLOCK_N):  # every row has seen key 0 in its first tile: best is finite
        s = _scores(q, k_base, skn, start, offset, k_len, D, BLOCK_D, BLOCK_M, BLOCK_N, True, PRECISION)
        best, total = _fold(best, total, s, scale_log2e)
    offs_m = first + tl.arange(0, BLOCK_M)
    tl.store(L + (b * heads + h) * q_len + offs_m, (best + tl.log2(total)) / LOG2E, mask=offs_m < q_len)


@triton.jit
def _reduce(
    s,
    lse,
    scale_log2e,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    Q_BLOCK: tl.constexpr,
    K_BLOCK: tl.constexpr,
    LARGEST: tl.constexpr,
):
    """Reduce scores [BLOCK_M, BLOCK_N] and log2-sum-exp [BLOCK_M] to one number a block, [BLOCK_M // Q_BLOCK, BLOCK_N //
    K_BLOCK]."""
    if LARGEST:  # scale is positive and exp2 rises: the maximum of the scores first
        rows = tl.max(tl.reshape(s, [BLOCK_M, BLOCK_N // K_BLOCK, K_BLOCK]), 2) * scale_log2e - lse[:, None]
        return tl.exp2(tl.max(tl.reshape(rows, [BLOCK_M // Q_BLOCK, Q_BLOCK, BLOCK_N // K_BLOCK]), 1))
    else:
        p = tl.exp2(s * scale_log2e - lse[:, None])
        rows = tl.sum(tl.reshape(p, [BLOCK_M, BLOCK_N // K_BLOCK, K_BLOCK]), 2)
        return tl.sum(tl.reshape(rows, [BLOCK_M // Q_BLOCK, Q_BLOCK, BLOCK_N // K_BLOCK]), 1)


# What changes with a prompt's length is not specialised on: no compiling for each length.
@triton.jit(do_not_specialize=["q_len", "k_len", "rows_total", "cols_total"])
def _pool(
    Q,
    K,
    L,
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
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    Q_BLOCK: tl.constexpr,
    K_BLOCK: tl.constexpr,
    LARGEST: tl.constexpr,
    PRECISION: tl.constexpr,
):
    b, h, first, q = _load_queries(Q, sqb, sqh, sqm, heads, q_len, D, BLOCK_D, BLOCK_M)
    k_base = K + b * skb + (h // group) * skh + tl.arange(0, BLOCK_N)[:, None] * skn + tl.arange(0, BLOCK_D)[None, :]
    offset = first + (k_len - q_len)
    unmasked = (offset + 1) // BLOCK_N * BLOCK_N
    end = tl.minimum(offset + BLOCK_M, k_len)
    offs_m = first + tl.arange(0, BLOCK_M)
    # rows past the end weigh nothing
    lse = tl.load(L + (b * heads + h) * q_len + offs_m, mask=offs_m < q_len, other=float("inf")) * LOG2E
    rows = first // Q_BLOCK + tl.arange(0, BLOCK_M // Q_BLOCK)
    cols = tl.arange(0, BLOCK_N // K_BLOCK)
    line = Out + ((b * heads + h) * rows_total + rows)[:, None] * cols_total + cols[None, :]
    in_rows = (rows < rows_total)[:, None]
    for start in range(0, unmasked, BLOCK_N):
        s = _scores(q, k_base, skn, start, offset, k_len, D, BLOCK_D, BLOCK_M, BLOCK_N, False, PRECISION)
        pooled = _reduce(s, lse, scale_log2e, BLOCK_M, BLOCK_N, Q_BLOCK, K_BLOCK, LARGEST)
        tl.store(line + start // K_BLOCK, pooled, mask=in_rows)
    for start in range(unmasked, end, BLOCK_N):
        s = _scores(q, k_base, skn, start, offset, k_len, D, BLOCK_D, BLOCK_M, BLOCK_N, True, PRECISION)
        pooled = _reduce(s, lse, scale_log2e, BLOCK_M, BLOCK_N, Q_BLOCK, K_BLOCK, LARGEST)
        tl.store(line + start // K_BLOCK, pooled, mask=in_rows & (start // K_BLOCK + cols < cols_total)[None, :])


def log_sum_exp_triton(q: Tensor, k: Tensor, *, scale: float) -> Tensor:
    """Run `attention_kernels.block_map.log_sum_exp` in Triton."""
    q, k = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k))
    batch, heads, q_len, dim = q.shape
    tile = tile_for(LOG_SUM_EXP, q.device, q.element_size(), power_of_two(dim))
    lse = torch.empty(batch, heads, q_len, dtype=torch.float32, device=q.device)
    with torch.cuda.device_of(q):  # Triton launches on the current device
        _log_sum_exp[(-(-q_len // tile.rows), batch * heads)](
            q,
            k,
            lse,
            *q.stride()[:3],
            *k.stride()[:3],
            heads,
            heads // k.shape[1],
            q_len,
            k.shape[2],
            scale * LOG2E.value,
            D=dim,
            BLOCK_D=tile.piece,
            BLOCK_M=tile.rows,
            BLOCK_N=tile.cols,
            PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
            num_warps=tile.warps,
            num_stages=tile.depth,
        )
    return lse


def block_map_triton(
    q: Tensor, k: Tensor, *, q_block: int, k_block: int, scale: float, largest: bool, lse: Tensor | None
) -> Tensor:
    """Compute `attention_kernels.block_map.block_map` in Triton: the largest probability of each block, or their sum."""
    q, k = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k))
    batch, heads, q_len, dim = q.shape
    k_len = k.shape[2]
    tile = tile_for(POOL, q.device, q.element_size(), power_of_two(dim))
    q_part, k_part = min(q_block, tile.rows), min(k_block, tile.cols)  # larger blocks are put together afterwards
    lse = log_sum_exp_triton(q, k, scale=scale) if lse is None else lse.float().contiguous()
    rows, cols = -(-q_len // q_part), -(-k_len // k_part)
    out = torch.zeros(batch, heads, rows, cols, dtype=torch.float32, device=q.device)
    with torch.cuda.device_of(q):
        _pool[(-(-q_len // tile.rows), batch * heads)](
            q,
            k,
            lse,
            out,
            *q.stride()[:3],
            *k.stride()[:3],
            heads,
            heads // k.shape[1],
            q_len,
            k_len,
            rows,
            cols,
            scale * LOG2E.value,
            D=dim,
            BLOCK_D=tile.piece,
            BLOCK_M=tile.rows,
            BLOCK_N=tile.cols,
            Q_BLOCK=q_part,
            K_BLOCK=k_part,
            LARGEST=largest,
            PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
            num_warps=tile.warps,
            num_stages=tile.depth,
        )
    return _join(out, q_block // q_part, k_block // k_part, largest)


def _join(parts: Tensor, down: int, across: int, largest: bool) -> Tensor:
    """Return the maximum, or the sum, of every `down` × `across` parts of a map [B, H, R, C]."""
    if down == across == 1:
        return parts
    rows, cols = parts.shape[2:]
    cells = (
        torch.nn.functional.pad(parts, (0, -cols % across, 0, -rows % down)).unflatten(3, (-1, across)).unflatten(2, (-1, down))
    )
    return cells.amax((3, 5)) if largest else cells.sum((3, 5))
