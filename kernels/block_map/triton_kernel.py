"""The pooled attention map in Triton: log-sum-exp of every query, then every tile once more for its maxima or sums."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _keys(k_base, cols, skn, present, offs_d, D: tl.constexpr, BLOCK_D: tl.constexpr, MASKED: tl.constexpr):
    """Keys at positions cols, [BLOCK_D, len(cols)]. MASKED: only where present."""
    tile = k_base + (cols.to(tl.int64) * skn)[None, :] + offs_d[:, None]
    if D != BLOCK_D:
        return tl.load(tile, mask=(offs_d < D)[:, None] & present[None, :], other=0.0)
    elif MASKED:
        return tl.load(tile, mask=present[None, :], other=0.0)
    else:
        return tl.load(tile)


@triton.jit
def _lse_step(
    q, best, total, k_base, skn, start, positions, k_len, offs_n, offs_d, scale,
    D: tl.constexpr, BLOCK_D: tl.constexpr, NEAR: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The online softmax's maximum and sum after one more tile. NEAR: the tile reaches the causal diagonal."""
    cols = start + offs_n
    k = _keys(k_base, cols, skn, cols < k_len, offs_d, D, BLOCK_D, NEAR)
    s = tl.dot(q, k, input_precision=PRECISION)
    if NEAR:
        s = tl.where(cols[None, :] <= positions[:, None], s, -float("inf"))
    top = tl.maximum(best, tl.max(s, 1) * scale)
    shift = top
    if NEAR:
        shift = tl.where(top == -float("inf"), 0.0, top)
    return top, total * tl.exp2(best - shift) + tl.sum(tl.exp2(s * scale - shift[:, None]), 1)


@triton.jit
def _log_sum_exp(
    Q, K, L, sqb, sqh, sqm, skb, skh, skn, heads, group, q_len, k_len, scale,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """L [B, H, Q]: log2 of the sum of each query's exponentials, scores in base 2."""
    row = tl.num_programs(0) - 1 - tl.program_id(0)  # the longest rows start first
    b = (tl.program_id(1) // heads).to(tl.int64)
    h = (tl.program_id(1) % heads).to(tl.int64)
    token = row * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = tl.arange(0, BLOCK_N)
    offs_d = tl.arange(0, BLOCK_D)
    in_tile = (token < q_len)[:, None] & (offs_d < D)[None, :]
    q = tl.load(Q + b * sqb + h * sqh + (token.to(tl.int64) * sqm)[:, None] + offs_d[None, :], mask=in_tile, other=0.0)
    k_base = K + b * skb + (h // group) * skh
    positions = token + (k_len - q_len)
    first_position = row * BLOCK_M + (k_len - q_len)
    end = tl.minimum(first_position + BLOCK_M, k_len)
    clear = (first_position + 1) // BLOCK_N * BLOCK_N  # keys before it are in the past of every query of the tile
    best = tl.full([BLOCK_M], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    for start in range(0, clear, BLOCK_N):
        best, total = _lse_step(
            q, best, total, k_base, skn, start, positions, k_len, offs_n, offs_d, scale, D, BLOCK_D, False, PRECISION
        )
    for start in range(clear, end, BLOCK_N):
        best, total = _lse_step(
            q, best, total, k_base, skn, start, positions, k_len, offs_n, offs_d, scale, D, BLOCK_D, True, PRECISION
        )
    tl.store(L + (b * heads + h) * q_len + token, best + tl.log2(total), mask=token < q_len)


@triton.jit
def _pool_step(
    q, lse, k_base, skn, start, positions, k_len, offs_n, offs_d, scale, out, in_rows, rows_inside, col0, cols_total,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, Q_PAD: tl.constexpr, COLS: tl.constexpr,
    K_BLOCK: tl.constexpr, K_PAD: tl.constexpr, NEAR: tl.constexpr, MASS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """ROWS × COLS blocks of the map. NEAR: the tile reaches the causal diagonal."""
    cols = start + offs_n
    present = (cols < k_len) & (offs_n < COLS * K_BLOCK)
    k = _keys(k_base, cols, skn, present, offs_d, D, BLOCK_D, NEAR or K_PAD != K_BLOCK)
    s = tl.dot(q, k, input_precision=PRECISION)
    if NEAR:
        s = tl.where((cols[None, :] <= positions[:, None]) & present[None, :], s, -float("inf"))
    elif K_PAD != K_BLOCK:
        s = tl.where(present[None, :], s, -float("inf"))
    if MASS:
        p = tl.exp2(s * scale - lse[:, None])
        within = tl.sum(tl.reshape(p, [ROWS * Q_PAD, COLS, K_PAD]), 2)
        pooled = tl.sum(tl.reshape(within, [ROWS, Q_PAD, COLS]), 1) / rows_inside[:, None]
    else:  # the exponential grows, so the largest exponent is enough
        highest = tl.max(tl.reshape(s, [ROWS * Q_PAD, COLS, K_PAD]), 2) * scale - lse[:, None]
        pooled = tl.exp2(tl.max(tl.reshape(highest, [ROWS, Q_PAD, COLS]), 1))
    col = col0 + tl.arange(0, COLS)
    tl.store(out + col[None, :], pooled, mask=in_rows[:, None] & (col < cols_total)[None, :])


@triton.jit
def _pool(
    Q, K, L, Out, sqb, sqh, sqm, skb, skh, skn, heads, group, q_len, k_len, rows_total, cols_total, scale,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, Q_BLOCK: tl.constexpr, Q_PAD: tl.constexpr,
    COLS: tl.constexpr, K_BLOCK: tl.constexpr, K_PAD: tl.constexpr, MASS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Tiles of ROWS × COLS blocks; ROWS (COLS) is 1 where the query (key) block is padded to a power of two."""
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    b = (tl.program_id(1) // heads).to(tl.int64)
    h = (tl.program_id(1) % heads).to(tl.int64)
    within = tl.arange(0, ROWS * Q_PAD)
    token = tile * ROWS * Q_BLOCK + within
    offs_n = tl.arange(0, COLS * K_PAD)
    offs_d = tl.arange(0, BLOCK_D)
    in_q = (token < q_len) & (within < ROWS * Q_BLOCK)
    in_tile = in_q[:, None] & (offs_d < D)[None, :]
    q = tl.load(Q + b * sqb + h * sqh + (token.to(tl.int64) * sqm)[:, None] + offs_d[None, :], mask=in_tile, other=0.0)
    lse = tl.load(L + (b * heads + h) * q_len + token, mask=in_q, other=float("inf"))  # other rows weigh nothing
    k_base = K + b * skb + (h // group) * skh
    positions = token + (k_len - q_len)
    first_position = tile * ROWS * Q_BLOCK + (k_len - q_len)
    end = tl.minimum(first_position + ROWS * Q_BLOCK, k_len)
    row = tile * ROWS + tl.arange(0, ROWS)
    in_rows = row < rows_total
    rows_inside = tl.maximum(tl.minimum(q_len - row * Q_BLOCK, Q_BLOCK), 1).to(tl.float32)
    out = Out + (((b * heads + h) * rows_total + row) * cols_total)[:, None]
    STEP: tl.constexpr = COLS * K_BLOCK
    clear = (first_position + 1) // STEP
    for i in range(0, clear):
        _pool_step(
            q, lse, k_base, skn, i * STEP, positions, k_len, offs_n, offs_d, scale, out, in_rows, rows_inside, i * COLS,
            cols_total, D, BLOCK_D, ROWS, Q_PAD, COLS, K_BLOCK, K_PAD, False, MASS, PRECISION,
        )  # fmt: skip
    for i in range(clear, (end + STEP - 1) // STEP):
        _pool_step(
            q, lse, k_base, skn, i * STEP, positions, k_len, offs_n, offs_d, scale, out, in_rows, rows_inside, i * COLS,
            cols_total, D, BLOCK_D, ROWS, Q_PAD, COLS, K_BLOCK, K_PAD, True, MASS, PRECISION,
        )  # fmt: skip


def block_map_triton(q: Tensor, k: Tensor, *, q_block: int, k_block: int, scale: float, pool: str) -> Tensor:
    """See `kernels.block_map.block_map`. Inputs may be strided; the last dimension is made contiguous."""
    q, k = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k))
    batch, heads, q_len, dim = q.shape
    k_len = k.shape[2]
    rows, cols = -(-q_len // q_block), -(-k_len // k_block)
    lse = torch.empty(batch, heads, q_len, dtype=torch.float32, device=q.device)
    out = torch.zeros(batch, heads, rows, cols, dtype=torch.float32, device=q.device)  # blocks in the future stay 0
    inputs = (*q.stride()[:3], *k.stride()[:3], heads, heads // k.shape[1], q_len, k_len)
    d_pad, q_pad, k_pad = (triton.next_power_of_2(n) for n in (dim, q_block, k_block))
    wide = q.element_size() < 4 and d_pad <= 128  # float32 (IEEE, no matrix units) and head dim 256 get small tiles
    block_m, block_n = (128, 64 if d_pad > 64 else 128) if wide else (32, 32)
    tile_rows = max(1, block_m // q_pad) if q_pad == q_block else 1
    tile_cols = max(1, block_n // k_pad) if k_pad == k_block else 1
    precision, base2 = "ieee" if q.dtype == torch.float32 else "tf32", scale * math.log2(math.e)
    stages = 3 if wide else 1
    with torch.cuda.device_of(q):
        _log_sum_exp[(-(-q_len // block_m), batch * heads)](
            q, k, lse, *inputs, base2,
            D=dim, BLOCK_D=d_pad, BLOCK_M=block_m, BLOCK_N=block_n, PRECISION=precision,
            num_warps=8 if wide else 4, num_stages=stages,
        )  # fmt: skip
        _pool[(-(-rows // tile_rows), batch * heads)](
            q, k, lse, out, *inputs, rows, cols, base2,
            D=dim, BLOCK_D=d_pad, ROWS=tile_rows, Q_BLOCK=q_block, Q_PAD=q_pad, COLS=tile_cols, K_BLOCK=k_block,
            K_PAD=k_pad, MASS=pool == "mass", PRECISION=precision,
            num_warps=8 if tile_rows * q_pad >= 128 else 4, num_stages=stages,
        )  # fmt: skip
    return out
