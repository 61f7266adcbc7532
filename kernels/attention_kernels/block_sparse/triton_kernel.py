"""Block-sparse attention in Triton: a FlashAttention loop over each row's list of key blocks.

One program owns a tile of query rows: a query block, a part of one, or the query blocks of several heads that share both
their list and their KV head, so that every K and V block is read once for all of them. It walks the list in steps of BLOCK_N
keys, without a mask until it comes to the blocks over the diagonal. A step is a part of a block, a block, or several small
blocks gathered side by side.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from attention_kernels.block_index import BlockIndex
from attention_kernels.block_sparse.triton_tuning import Tile, choose_tile, describable
from attention_kernels.tiles import power_of_two

LOWEST = tl.constexpr(-1.0e30)
"""Where a row's maximum starts: below every score, and finite, so that a row that has seen no key yet makes no NaN."""


# Lengths and the index's shape change from call to call and help no address: one compiled kernel serves them all.
@triton.jit(
    do_not_specialize=["scb", "sch", "sib", "sih", "sim", "listed", "kv_heads", "index_heads", "shared", "q_len", "k_len"],
)
def _forward(
    Q,
    K,
    V,
    Out,
    Lse,
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
    scale_log2e,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    Q_BLOCK: tl.constexpr,
    K_BLOCK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    DESCRIBED: tl.constexpr,
    PRECISION: tl.constexpr,
    KEEP: tl.constexpr,
):
    ROWS: tl.constexpr = min(BLOCK_M, Q_BLOCK)  # tokens of one head in the tile
    UNIT: tl.constexpr = min(BLOCK_N, K_BLOCK)  # keys side by side; a step has BLOCK_N // UNIT units, a block K_BLOCK // UNIT
    JOIN: tl.constexpr = BLOCK_N // UNIT
    PARTS: tl.constexpr = Q_BLOCK // ROWS  # tiles that a query block is cut into, or
    PACK: tl.constexpr = BLOCK_M // ROWS  # heads that share a list and lie in one tile
    # The longest rows start first. Programs that run side by side read the same keys: parts of a query block, then heads
    # of one list, then lists of one KV head, then rows.
    packs = tl.cdiv(shared, PACK)
    tiles = PARTS * packs * (index_heads // kv_heads)
    row = (tl.num_programs(0) - 1 - tl.program_id(0)) // tiles
    tile = tl.program_id(0) % tiles
    b = tl.program_id(1) // kv_heads
    hk = tl.program_id(1) % kv_heads
    hi = hk * (index_heads // kv_heads) + tile // (PARTS * packs)
    token0 = row * Q_BLOCK + (tile % PARTS) * ROWS
    if token0 >= q_len:  # the last query block is short, and this is a part past its end
        return
    slot = (tile // PARTS) % packs * PACK + tl.arange(0, BLOCK_M) // ROWS  # which of the heads that share the list
    token = token0 + tl.arange(0, BLOCK_M) % ROWS
    real = (token < q_len) & (slot < shared)
    head = hi * shared + slot
    offs_n = tl.arange(0, BLOCK_N)
    offs_d = tl.arange(0, BLOCK_D)
    keep_q = real[:, None]
    if D != BLOCK_D:
        keep_q = keep_q & (offs_d < D)[None, :]
    q_at = b.to(tl.int64) * sqb + head.to(tl.int64) * sqh + token.to(tl.int64) * sqm
    q = tl.load(Q + q_at[:, None] + offs_d[None, :], mask=keep_q, other=0.0)

    # The list ends with the blocks over the row's own tokens. Counted in units, it runs from 0 to `end` for this tile,
    # and its last `diagonal` ones need the causal mask. The mask also hides what fills up a step of several blocks.
    offset = k_len - q_len
    positions = token + offset
    last = tl.minimum(token0 + ROWS, q_len) - 1 + offset
    row_last = tl.minimum((row + 1) * Q_BLOCK, q_len) - 1 + offset
    count = tl.load(Counts + b.to(tl.int64) * scb + hi.to(tl.int64) * sch + row)
    blocks = Indices + b.to(tl.int64) * sib + hi.to(tl.int64) * sih + row.to(tl.int64) * sim
    if KEEP:
        blocks = tl.where(row >= listed, Every, blocks)
    end = (count - row_last // K_BLOCK - 1) * (K_BLOCK // UNIT) + last // UNIT + 1
    diagonal = last // UNIT - (token0 + offset) // UNIT + 1
    free = tl.maximum(end - diagonal, 0) // JOIN
    masked = tl.cdiv(end - free * JOIN, JOIN)

    best = tl.full([BLOCK_M], LOWEST, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    k_from, v_from = K, V
    if not DESCRIBED:
        k_from += b.to(tl.int64) * skb + hk.to(tl.int64) * skh
        v_from += b.to(tl.int64) * svb + hk.to(tl.int64) * svh
    ahead = find_step(blocks, 0, end, k_len, offs_n, K_BLOCK, UNIT, JOIN, True)
    for i in range(free):
        at = ahead  # known a turn early: the addresses of K and V don't wait for the list
        ahead = find_step(blocks, tl.minimum(i + 1, free - 1), end, k_len, offs_n, K_BLOCK, UNIT, JOIN, False)
        k = load_step(k_from, at, b, hk, skn, k_len, offs_n, offs_d, D, BLOCK_D, BLOCK_N, JOIN, DESCRIBED, False)
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        v = load_step(v_from, at, b, hk, svn, k_len, offs_n, offs_d, D, BLOCK_D, BLOCK_N, JOIN, DESCRIBED, False)
        best, total, acc = softmax_step(s, v, best, total, acc, scale_log2e, PRECISION)
    # After the free steps: ptxas serializes the matrix products of a pipelined loop that another loop hands its sums to.
    for i in tl.range(free, free + masked, num_stages=1):
        at = find_step(blocks, i, end, k_len, offs_n, K_BLOCK, UNIT, JOIN, True)
        cols = at + offs_n if JOIN == 1 else at
        k = load_step(k_from, at, b, hk, skn, k_len, offs_n, offs_d, D, BLOCK_D, BLOCK_N, JOIN, DESCRIBED, True)
        v = load_step(v_from, at, b, hk, svn, k_len, offs_n, offs_d, D, BLOCK_D, BLOCK_N, JOIN, DESCRIBED, True)
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        s = tl.where(cols[None, :] <= positions[:, None], s, -float("inf"))
        best, total, acc = softmax_step(s, v, best, total, acc, scale_log2e, PRECISION)

    if KEEP:
        heads = index_heads * shared
        tl.store(Lse + (b * heads + head).to(tl.int64) * q_len + token, best + tl.log2(total), mask=real)
    acc = acc * (1.0 / total)[:, None]
    o_at = b.to(tl.int64) * sob + head.to(tl.int64) * soh + token.to(tl.int64) * som
    tl.store(Out + o_at[:, None] + offs_d[None, :], acc.to(Out.dtype.element_ty), mask=keep_q)


@triton.jit
def find_step(
    blocks, step, end, k_len, offs_n, K_BLOCK: tl.constexpr, UNIT: tl.constexpr, JOIN: tl.constexpr, TAIL: tl.constexpr
):
    """Return the first key of a step (JOIN == 1), or every key of its blocks [BLOCK_N]; with TAIL the list may end inside the
    step."""
    SPLIT: tl.constexpr = K_BLOCK // UNIT
    entry = step * JOIN + offs_n // K_BLOCK
    if JOIN == 1:
        at = tl.load(blocks + step // SPLIT) * K_BLOCK + step % SPLIT * UNIT
    elif TAIL:
        block = tl.load(blocks + entry, mask=entry < end, other=0)
        at = tl.where(entry < end, block * K_BLOCK + offs_n % K_BLOCK, k_len)
    else:
        at = tl.load(blocks + entry) * K_BLOCK + offs_n % K_BLOCK
    return at


@triton.jit
def load_step(
    X,
    at,
    b,
    hk,
    stride,
    k_len,
    offs_n,
    offs_d,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    JOIN: tl.constexpr,
    DESCRIBED: tl.constexpr,
    BOUND: tl.constexpr,
):
    """Load keys or values [BLOCK_N, BLOCK_D] of a step; with BOUND some may lie past the last key, and are zero."""
    if DESCRIBED:
        x = tl.reshape(X.load([b, hk, at, 0]), [BLOCK_N, BLOCK_D])
    else:
        if JOIN == 1:
            cols = at + offs_n
            where = X + at.to(tl.int64) * stride + (offs_n.to(tl.int64)[:, None] * stride + offs_d[None, :])
        else:
            cols = at
            where = X + (at.to(tl.int64)[:, None] * stride + offs_d[None, :])
        if BOUND:
            x = tl.load(where, mask=(cols < k_len)[:, None] & (offs_d < D)[None, :], other=0.0)
        elif D != BLOCK_D:
            x = tl.load(where, mask=(offs_d < D)[None, :], other=0.0)
        else:
            x = tl.load(where)
    return x


@triton.jit
def softmax_step(s, v, best, total, acc, scale_log2e, PRECISION: tl.constexpr):
    """Take one step of the running softmax; scores are scaled inside the exponent."""
    top = tl.maximum(best, tl.max(s, 1) * scale_log2e)
    p = tl.exp2(s * scale_log2e - top[:, None])
    alpha = tl.exp2(best - top)
    total = total * alpha + tl.sum(p, 1)
    acc = tl.dot(p.to(v.dtype), v, acc * alpha[:, None], input_precision=PRECISION)
    return top, total, acc


def block_sparse_triton(q: Tensor, k: Tensor, v: Tensor, index: BlockIndex, *, scale: float) -> Tensor:
    """Run `attention_kernels.block_sparse.block_sparse_attention` in Triton. Raises ValueError unless `scale` is positive."""
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    tile = choose_tile(
        q.device,
        q.dtype,
        dim=q.shape[-1],
        q_block=index.q_block,
        k_block=index.k_block,
        shared=shared_heads(q, k, index),
        described=describable(k) and describable(v),
    )
    return run_tile(q, k, v, index, scale=scale, tile=tile)


def shared_heads(q: Tensor, k: Tensor, index: BlockIndex) -> int:
    """Return how many query heads of one KV head have one list."""
    return q.shape[1] // index.counts.shape[1]


def run_tile(
    q: Tensor, k: Tensor, v: Tensor, index: BlockIndex, *, scale: float, tile: Tile, lse: Tensor | None = None
) -> Tensor:
    """Run the kernel with a tile of the caller's choice, for tuning and tests; the last dimension of q, k and v is
    contiguous. What is returned for full rows is not written, unless there is an `lse`, float32 [B, Hq, Q], contiguous: it
    gets the log-sum-exp to the base 2, of every row."""
    if not scale > 0:
        raise ValueError(f"scale={scale} must be positive: the kernel takes a row's maximum before it scales")
    if tile.described and tile.cols > index.k_block:
        raise ValueError(f"a descriptor reads at most one key block a step: {tile.cols} keys, key block {index.k_block}")
    batch, heads, q_len, dim = q.shape
    kv_heads, index_heads = k.shape[1], index.counts.shape[1]
    out = torch.empty_like(q)
    counts, indices = index.counts, index.indices
    if indices.stride(-1) != 1 or counts.stride(-1) != 1:
        counts, indices = counts.contiguous(), indices.contiguous()
    pad = power_of_two(dim)
    rows = min(tile.rows, index.q_block)
    packs = -(-shared_heads(q, k, index) * rows // tile.rows)
    tiles = index.q_block // rows * packs * (index_heads // kv_heads)
    k_from, v_from = (describe(x, tile.cols, pad) for x in (k, v)) if tile.described else (k, v)
    run_rows = index.listed_rows if lse is None else index.counts.shape[-1]
    with torch.cuda.device_of(q):  # Triton launches on the current device
        _forward[(run_rows * tiles, batch * kv_heads)](
            q,
            k_from,
            v_from,
            out,
            out if lse is None else lse,  # of no meaning without
            counts,
            indices,
            every_block(index) if lse is not None and index.full_rows else indices,
            *q.stride()[:3],
            *k.stride()[:3],
            *v.stride()[:3],
            *out.stride()[:3],
            *counts.stride()[:2],
            *indices.stride()[:3],
            index.listed_rows,
            kv_heads,
            index_heads,
            heads // index_heads,
            q_len,
            k.shape[2],
            scale * math.log2(math.e),
            D=dim,
            BLOCK_D=pad,
            Q_BLOCK=index.q_block,
            K_BLOCK=index.k_block,
            BLOCK_M=tile.rows,
            BLOCK_N=tile.cols,
            DESCRIBED=tile.described,
            PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
            KEEP=lse is not None,
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
    return out


def every_block(index: BlockIndex) -> Tensor:
    """Return the list of a full row, int32 [Nk]: all key blocks, of which it has as many as its count says."""
    return torch.arange(-(-index.k_len // index.k_block), dtype=torch.int32, device=index.counts.device)


def describe(x: Tensor, cols: int, pad: int) -> TensorDescriptor:
    """Return what loads tiles of `cols` tokens of x [B, H, N, D]."""
    return TensorDescriptor(x, list(x.shape), list(x.stride()), [1, 1, cols, pad])
