"""The pooled attention map in Triton: log-sum-exp of every query, then every tile once more for its max or sum."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.tiles import shared_bytes, stages


@triton.jit
def _log_sum_exp(
    Q, K, L, sqb, sqh, sqm, skb, skh, skn, heads, group, q_len, k_len, scale_log2e,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    row = tl.num_programs(0) - 1 - tl.program_id(0)
    b = (tl.program_id(1) // heads).to(tl.int64)
    h = (tl.program_id(1) % heads).to(tl.int64)
    offs_m = row * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = tl.arange(0, BLOCK_N)
    offs_d = tl.arange(0, BLOCK_D)
    in_d = offs_d < D
    q = tl.load(
        Q + b * sqb + h * sqh + offs_m.to(tl.int64)[:, None] * sqm + offs_d[None, :],
        mask=(offs_m < q_len)[:, None] & in_d[None, :],
        other=0.0,
    )
    k_base = K + b * skb + (h // group) * skh + offs_d[:, None]
    positions = offs_m + (k_len - q_len)
    first_position = row * BLOCK_M + (k_len - q_len)
    end = tl.minimum(first_position + BLOCK_M, k_len)
    best = tl.full([BLOCK_M], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    for start in range(0, end, BLOCK_N):
        cols = start + offs_n
        k = tl.load(k_base + cols.to(tl.int64)[None, :] * skn, mask=in_d[:, None] & (cols < k_len)[None, :], other=0.0)
        s = tl.dot(q, k, input_precision=PRECISION) * scale_log2e
        if start + BLOCK_N - 1 > first_position:
            s = tl.where(cols[None, :] <= positions[:, None], s, -float("inf"))
        top = tl.maximum(best, tl.max(s, 1))
        total = total * tl.exp2(best - top) + tl.sum(tl.exp2(s - top[:, None]), 1)
        best = top
    tl.store(L + (b * heads + h) * q_len + offs_m, best + tl.log2(total), mask=offs_m < q_len)


@triton.jit
def _pool(
    Q, K, L, Out, sqb, sqh, sqm, skb, skh, skn, heads, group, q_len, k_len, cols_total, scale_log2e,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, MASS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    row = tl.num_programs(0) - 1 - tl.program_id(0)
    b = (tl.program_id(1) // heads).to(tl.int64)
    h = (tl.program_id(1) % heads).to(tl.int64)
    offs_m = row * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = tl.arange(0, BLOCK_N)
    offs_d = tl.arange(0, BLOCK_D)
    in_q = offs_m < q_len
    in_d = offs_d < D
    q = tl.load(
        Q + b * sqb + h * sqh + offs_m.to(tl.int64)[:, None] * sqm + offs_d[None, :],
        mask=in_q[:, None] & in_d[None, :],
        other=0.0,
    )
    lse = tl.load(L + (b * heads + h) * q_len + offs_m, mask=in_q, other=float("inf"))  # rows past the end weigh nothing
    k_base = K + b * skb + (h // group) * skh + offs_d[:, None]
    positions = offs_m + (k_len - q_len)
    first_position = row * BLOCK_M + (k_len - q_len)
    end = tl.minimum(first_position + BLOCK_M, k_len)
    rows_inside = tl.minimum(q_len - row * BLOCK_M, BLOCK_M)
    line = Out + ((b * heads + h) * tl.num_programs(0) + row) * cols_total
    for start in range(0, end, BLOCK_N):
        cols = start + offs_n
        k = tl.load(k_base + cols.to(tl.int64)[None, :] * skn, mask=in_d[:, None] & (cols < k_len)[None, :], other=0.0)
        s = tl.dot(q, k, input_precision=PRECISION) * scale_log2e
        if start + BLOCK_N - 1 > first_position:
            s = tl.where(cols[None, :] <= positions[:, None], s, -float("inf"))
        if MASS:
            tl.store(line + start // BLOCK_N, tl.sum(tl.sum(tl.exp2(s - lse[:, None]), 1), 0) / rows_inside)
        else:
            tl.store(line + start // BLOCK_N, tl.exp2(tl.max(tl.max(s, 1) - lse, 0)))  # exp2 rises: one for a tile is enough


def block_map_triton(q: Tensor, k: Tensor, *, q_block: int, k_block: int, scale: float, pool: str) -> Tensor:
    """See `kernels.block_map.block_map`."""
    q, k = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k))
    batch, heads, q_len, dim = q.shape
    k_len = k.shape[2]
    rows, cols = -(-q_len // q_block), -(-k_len // k_block)
    lse = torch.empty(batch, heads, q_len, dtype=torch.float32, device=q.device)
    out = torch.zeros(batch, heads, rows, cols, dtype=torch.float32, device=q.device)
    strides = (*q.stride()[:3], *k.stride()[:3])
    sizes = (heads, heads // k.shape[1], q_len, k_len)
    precision = "ieee" if q.dtype == torch.float32 else "tf32"
    pad = triton.next_power_of_2(dim)
    scale = scale * math.log2(math.e)
    warps = 8 if q_block == 128 else 4
    room = shared_bytes(q.device)
    tile = 128 if q.device.type == "cuda" else 16
    with torch.cuda.device_of(q):  # Triton launches on the current device
        _log_sum_exp[(-(-q_len // tile), batch * heads)](
            q, k, lse, *strides, *sizes, scale, D=dim, BLOCK_D=pad, BLOCK_M=tile, BLOCK_N=64 if tile == 128 else 16,
            PRECISION=precision, num_warps=8 if tile == 128 else 4,
            num_stages=stages(tile, 64 if tile == 128 else 16, pad, q.element_size(), room),
        )  # fmt: skip
        _pool[(rows, batch * heads)](
            q, k, lse, out, *strides, *sizes, cols, scale, D=dim, BLOCK_D=pad, BLOCK_M=q_block, BLOCK_N=k_block,
            MASS=pool == "mass", PRECISION=precision, num_warps=warps,
            num_stages=stages(q_block, k_block, pad, q.element_size(), room),
        )  # fmt: skip
    return out
