"""Block-sparse attention in Triton: a FlashAttention loop over each row's list of key blocks (forward only)."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.block_index import BlockIndex
from kernels.tiles import shared_bytes, stages


@triton.jit
def _forward(
    Q, K, V, Out, Counts, Indices,
    sqb, sqh, sqm, skb, skh, skn, svb, svh, svn, sob, soh, som, scb, sch, sib, sih, sim,
    heads, group, index_group, q_len, k_len, scale_log2e,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    row = tl.num_programs(0) - 1 - tl.program_id(0)  # the longest rows start first
    b = (tl.program_id(1) // heads).to(tl.int64)
    h = (tl.program_id(1) % heads).to(tl.int64)
    hk = h // group
    hi = h // index_group
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
    first_position = row * BLOCK_M + (k_len - q_len)
    positions = offs_m + (k_len - q_len)
    count = tl.load(Counts + b * scb + hi * sch + row)
    list_start = Indices + b * sib + hi * sih + row.to(tl.int64) * sim
    k_base = K + b * skb + hk * skh + offs_d[:, None]
    v_base = V + b * svb + hk * svh + offs_d[None, :]
    best = tl.full([BLOCK_M], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for i in range(count):
        block = tl.load(list_start + i)
        start = block * BLOCK_N
        cols = start + offs_n
        k = tl.load(k_base + cols.to(tl.int64)[None, :] * skn, mask=in_d[:, None] & (cols < k_len)[None, :], other=0.0)
        s = tl.dot(q, k, input_precision=PRECISION) * scale_log2e
        if start + BLOCK_N - 1 > first_position:
            s = tl.where(cols[None, :] <= positions[:, None], s, -float("inf"))
        top = tl.maximum(best, tl.max(s, 1))
        safe = tl.where(top == -float("inf"), 0.0, top)
        p = tl.exp2(s - safe[:, None])
        alpha = tl.exp2(best - safe)
        total = total * alpha + tl.sum(p, 1)
        v = tl.load(v_base + cols.to(tl.int64)[:, None] * svn, mask=(cols < k_len)[:, None] & in_d[None, :], other=0.0)
        acc = acc * alpha[:, None]
        acc = tl.dot(p.to(v.dtype), v, acc, input_precision=PRECISION)
        best = top
    acc = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    tl.store(
        Out + b * sob + h * soh + offs_m.to(tl.int64)[:, None] * som + offs_d[None, :],
        acc.to(Out.dtype.element_ty),
        mask=in_q[:, None] & in_d[None, :],
    )


def block_sparse_triton(q: Tensor, k: Tensor, v: Tensor, index: BlockIndex, *, scale: float) -> Tensor:
    """See `kernels.block_sparse.block_sparse_attention`."""
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    batch, heads, q_len, dim = q.shape
    out = torch.empty_like(q)
    counts, indices = index.counts, index.indices
    if indices.stride(-1) != 1 or counts.stride(-1) != 1:
        counts, indices = counts.contiguous(), indices.contiguous()
    tile = max(index.q_block, index.k_block)
    pad = triton.next_power_of_2(dim)
    most = 2 if q.dtype == torch.float32 else 3
    depth = stages(index.q_block, 2 * index.k_block, pad, q.element_size(), shared_bytes(q.device), most)
    grid = (counts.shape[-1], batch * heads)
    with torch.cuda.device_of(q):  # Triton launches on the current device
        _forward[grid](
            q, k, v, out, counts, indices,
            *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *out.stride()[:3], *counts.stride()[:2], *indices.stride()[:3],
            heads, heads // k.shape[1], heads // counts.shape[1], q_len, k.shape[2], scale * math.log2(math.e),
            D=dim, BLOCK_D=pad, BLOCK_M=index.q_block, BLOCK_N=index.k_block,
            PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
            num_warps=8 if tile >= 128 and index.q_block >= 64 else 4, num_stages=depth,
        )  # fmt: skip
    return out
