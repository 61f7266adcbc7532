# mypy: disable-error-code="no-untyped-def"
"""dQ of block-sparse attention in Triton, and the sums that dK and dV need: the loop of the forward pass once more.

A program owns the same query rows as in the forward pass, and walks the same list. With the row's log-sum-exp kept it needs no
running maximum: P = 2^(S - LSE), dP = dO·Vᵀ, dS = P·(dP - delta), dQ += dS·K, where delta is the row's sum of dO·O.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from attention_kernels.block_index import BlockIndex
from attention_kernels.block_sparse.triton_kernel import describe, every_block, find_step, load_step, shared_heads
from attention_kernels.block_sparse.triton_tuning import Tile


# Lengths and the index's shape change from call to call and help no address: one compiled kernel serves them all.
@triton.jit(
    do_not_specialize=["scb", "sch", "sib", "sih", "sim", "listed", "kv_heads", "index_heads", "shared", "q_len", "k_len"],
)
def _queries(
    Q,
    K,
    V,
    Out,
    Grad,
    DQ,
    Lse,
    Delta,
    Counts,
    Indices,
    Every,
    sqb,
    sqh,
    sqm,
    skb,
    skh,
    skn,
    svb,
    svh,
    svn,
    sob,
    soh,
    som,
    sgb,
    sgh,
    sgm,
    sdb,
    sdh,
    sdm,
    scb,
    sch,
    sib,
    sih,
    sim,
    listed,
    kv_heads,
    index_heads,
    shared,
    q_len,
    k_len,
    scale,
    scale_log2e,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    Q_BLOCK: tl.constexpr,
    K_BLOCK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    DESCRIBED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    # Rows, heads and steps are those of the forward pass: see `attention_kernels.block_sparse.triton_kernel`.
    ROWS: tl.constexpr = min(BLOCK_M, Q_BLOCK)
    UNIT: tl.constexpr = min(BLOCK_N, K_BLOCK)
    JOIN: tl.constexpr = BLOCK_N // UNIT
    PARTS: tl.constexpr = Q_BLOCK // ROWS
    PACK: tl.constexpr = BLOCK_M // ROWS
    packs = tl.cdiv(shared, PACK)
    tiles = PARTS * packs * (index_heads // kv_heads)
    row = (tl.num_programs(0) - 1 - tl.program_id(0)) // tiles
    tile = tl.program_id(0) % tiles
    b = tl.program_id(1) // kv_heads
    hk = tl.program_id(1) % kv_heads
    hi = hk * (index_heads // kv_heads) + tile // (PARTS * packs)
    token0 = row * Q_BLOCK + (tile % PARTS) * ROWS
    if token0 >= q_len:
        return
    slot = (tile // PARTS) % packs * PACK + tl.arange(0, BLOCK_M) // ROWS
    token = token0 + tl.arange(0, BLOCK_M) % ROWS
    real = (token < q_len) & (slot < shared)
    head = hi * shared + slot
    offs_n = tl.arange(0, BLOCK_N)
    offs_d = tl.arange(0, BLOCK_D)
    keep = real[:, None] & (offs_d < D)[None, :]
    b_ = b.to(tl.int64)
    head_ = head.to(tl.int64)
    token_ = token.to(tl.int64)
    q = tl.load(Q + (b_ * sqb + head_ * sqh + token_ * sqm)[:, None] + offs_d[None, :], mask=keep, other=0.0)
    grad = tl.load(Grad + (b_ * sgb + head_ * sgh + token_ * sgm)[:, None] + offs_d[None, :], mask=keep, other=0.0)
    out = tl.load(Out + (b_ * sob + head_ * soh + token_ * som)[:, None] + offs_d[None, :], mask=keep, other=0.0)
    line = (b * (index_heads * shared) + head).to(tl.int64) * q_len + token
    delta = tl.sum(out.to(tl.float32) * grad.to(tl.float32), 1)
    tl.store(Delta + line, delta, mask=real)
    lse = tl.load(Lse + line, mask=real, other=0.0)

    offset = k_len - q_len
    positions = token + offset
    last = tl.minimum(token0 + ROWS, q_len) - 1 + offset
    row_last = tl.minimum((row + 1) * Q_BLOCK, q_len) - 1 + offset
    count = tl.load(Counts + b_ * scb + hi.to(tl.int64) * sch + row)
    blocks = Indices + b_ * sib + hi.to(tl.int64) * sih + row.to(tl.int64) * sim
    if row >= listed:
        blocks = Every
    end = (count - row_last // K_BLOCK - 1) * (K_BLOCK // UNIT) + last // UNIT + 1
    diagonal = last // UNIT - (token0 + offset) // UNIT + 1
    free = tl.maximum(end - diagonal, 0) // JOIN
    masked = tl.cdiv(end - free * JOIN, JOIN)

    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    k_from, v_from = K, V
    if not DESCRIBED:
        k_from += b_ * skb + hk.to(tl.int64) * skh
        v_from += b_ * svb + hk.to(tl.int64) * svh
    ahead = find_step(blocks, 0, end, k_len, offs_n, K_BLOCK, UNIT, JOIN, True)
    for i in range(free):
        at = ahead
        ahead = find_step(blocks, tl.minimum(i + 1, free - 1), end, k_len, offs_n, K_BLOCK, UNIT, JOIN, False)
        k = load_step(k_from, at, b, hk, skn, k_len, offs_n, offs_d, D, BLOCK_D, BLOCK_N, JOIN, DESCRIBED, False)
        v = load_step(v_from, at, b, hk, svn, k_len, offs_n, offs_d, D, BLOCK_D, BLOCK_N, JOIN, DESCRIBED, False)
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        dp = tl.dot(grad, tl.trans(v), input_precision=PRECISION)
        ds = tl.exp2(s * scale_log2e - lse[:, None]) * (dp - delta[:, None])
        acc = tl.dot(ds.to(k.dtype), k, acc, input_precision=PRECISION)
    for i in tl.range(free, free + masked, num_stages=1):
        at = find_step(blocks, i, end, k_len, offs_n, K_BLOCK, UNIT, JOIN, True)
        cols = at + offs_n if JOIN == 1 else at
        k = load_step(k_from, at, b, hk, skn, k_len, offs_n, offs_d, D, BLOCK_D, BLOCK_N, JOIN, DESCRIBED, True)
        v = load_step(v_from, at, b, hk, svn, k_len, offs_n, offs_d, D, BLOCK_D, BLOCK_N, JOIN, DESCRIBED, True)
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        dp = tl.dot(grad, tl.trans(v), input_precision=PRECISION)
        s = tl.where(cols[None, :] <= positions[:, None], s * scale_log2e - lse[:, None], -float("inf"))
        ds = tl.exp2(s) * (dp - delta[:, None])
        acc = tl.dot(ds.to(k.dtype), k, acc, input_precision=PRECISION)

    where = DQ + (b_ * sdb + head_ * sdh + token_ * sdm)[:, None] + offs_d[None, :]
    tl.store(where, (acc * scale).to(DQ.dtype.element_ty), mask=keep)


def query_gradient(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    grad: Tensor,
    index: BlockIndex,
    delta: Tensor,
    *,
    scale: float,
    tile: Tile,
) -> Tensor:
    """Return dQ [B, Hq, Q, D], and write `delta`, float32 [B, Hq, Q]. lse: of the forward pass, to the base 2, as `delta`
    contiguous; the last dimension of all others is. Every element is written. Raises ValueError for a tile with descriptors of
    more keys than a key block has."""
    if tile.described and tile.cols > index.k_block:
        raise ValueError(f"{tile} does not fit key blocks of {index.k_block}: a descriptor reads at most one of them a step")
    batch, heads, q_len, dim = q.shape
    kv_heads, index_heads = k.shape[1], index.counts.shape[1]
    dq = torch.empty_like(q)
    counts, indices = index.counts, index.indices
    if indices.stride(-1) != 1 or counts.stride(-1) != 1:
        counts, indices = counts.contiguous(), indices.contiguous()
    pad = triton.next_power_of_2(dim)
    rows = min(tile.rows, index.q_block)
    packs = -(-shared_heads(q, k, index) * rows // tile.rows)
    tiles = index.q_block // rows * packs * (index_heads // kv_heads)
    k_from, v_from = (describe(x, tile.cols, pad) for x in (k, v)) if tile.described else (k, v)
    with torch.cuda.device_of(q):  # Triton launches on the current device
        _queries[(index.counts.shape[-1] * tiles, batch * kv_heads)](
            q,
            k_from,
            v_from,
            out,
            grad,
            dq,
            lse,
            delta,
            counts,
            indices,
            every_block(index) if index.full_rows else indices,
            *q.stride()[:3],
            *k.stride()[:3],
            *v.stride()[:3],
            *out.stride()[:3],
            *grad.stride()[:3],
            *dq.stride()[:3],
            *counts.stride()[:2],
            *indices.stride()[:3],
            index.listed_rows,
            kv_heads,
            index_heads,
            heads // index_heads,
            q_len,
            k.shape[2],
            scale,
            scale * math.log2(math.e),
            D=dim,
            BLOCK_D=pad,
            Q_BLOCK=index.q_block,
            K_BLOCK=index.k_block,
            BLOCK_M=tile.rows,
            BLOCK_N=tile.cols,
            DESCRIBED=tile.described,
            PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
    return dq
