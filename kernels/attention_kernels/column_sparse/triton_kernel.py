"""Attention over blocks and columns in Triton: a FlashAttention loop over a row's blocks, then one over its columns (forward
only).

One program owns a query block of one head, or a part of it. A step is BLOCK_N keys: a block, a part of one, or as many
columns, gathered by their positions; those that are not open in the row are masked, and where rows choose by themselves, a
step without an open one is skipped. The blocks over the row's own tokens come last, with the causal mask; nothing before them
is in the future of any query.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from attention_kernels.block_sparse.triton_tuning import Tile, default_tile, describable
from attention_kernels.column_index import ColumnIndex
from attention_kernels.tiles import power_of_two, shared_bytes

LOWEST = tl.constexpr(-1.0e30)
"""Where a row's maximum starts: below every score, and finite, so that a step without an open column makes no NaN."""


@triton.jit(do_not_specialize=["kv_heads", "group", "shared", "q_len", "k_len", "list_width", "width", "words"])
def _forward(
    Q,
    K,
    V,
    KD,
    VD,
    Out,
    Counts,
    Indices,
    Columns,
    Open,
    Reach,
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
    kv_heads,
    group,
    shared,
    q_len,
    k_len,
    list_width,
    width,
    words,
    scale_log2e,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    Q_BLOCK: tl.constexpr,
    K_BLOCK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    DESCRIBED: tl.constexpr,
    SKIP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    PARTS: tl.constexpr = Q_BLOCK // BLOCK_M
    # The longest rows start first; the heads of one KV head run side by side, since they read the same keys.
    tiles = PARTS * group
    rows = tl.cdiv(q_len, Q_BLOCK)
    row = (tl.num_programs(0) - 1 - tl.program_id(0)) // tiles
    tile = tl.program_id(0) % tiles
    b = tl.program_id(1) // kv_heads
    hk = tl.program_id(1) % kv_heads
    head = hk * group + tile // PARTS
    token0 = row * Q_BLOCK + tile % PARTS * BLOCK_M
    if token0 >= q_len:  # the last query block is short, and this is a part past its end
        return
    token = token0 + tl.arange(0, BLOCK_M)
    offs_n = tl.arange(0, BLOCK_N)
    offs_d = tl.arange(0, BLOCK_D)
    keep_q = (token < q_len)[:, None] & (offs_d < D)[None, :]
    q_at = Q + b.to(tl.int64) * sqb + head.to(tl.int64) * sqh
    q = tl.load(q_at + token.to(tl.int64)[:, None] * sqm + offs_d[None, :], mask=keep_q, other=0.0)
    k_from = K + b.to(tl.int64) * skb + hk.to(tl.int64) * skh + offs_d[None, :]
    v_from = V + b.to(tl.int64) * svb + hk.to(tl.int64) * svh + offs_d[None, :]

    index_heads = kv_heads * group // shared
    list_head = (b * index_heads + head // shared).to(tl.int64)
    list_row = list_head * rows + row
    offset = k_len - q_len
    own = (row * Q_BLOCK + offset) // K_BLOCK  # first of the blocks over the row's own tokens
    row_last = tl.minimum((row + 1) * Q_BLOCK, q_len) - 1 + offset
    blocks = Indices + list_row * list_width
    columns = Columns + list_head * width
    bits = Open + list_row * words
    reach = tl.load(Reach + list_row)
    SPLIT: tl.constexpr = K_BLOCK // BLOCK_N
    free = (tl.load(Counts + list_row) - (row_last // K_BLOCK - own + 1)) * SPLIT

    best = tl.full([BLOCK_M], LOWEST, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    ahead = tl.load(blocks) * K_BLOCK
    for i in range(free):
        at = ahead  # known a turn early: the addresses of K and V don't wait for the list
        then = tl.minimum(i + 1, free - 1)
        ahead = tl.load(blocks + then // SPLIT) * K_BLOCK + then % SPLIT * BLOCK_N
        if DESCRIBED:
            k = tl.reshape(KD.load([b, hk, at, 0]), [BLOCK_N, BLOCK_D])
        else:
            k = _gather(k_from, at + offs_n, skn, offs_d, D, BLOCK_D)
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        if DESCRIBED:
            v = tl.reshape(VD.load([b, hk, at, 0]), [BLOCK_N, BLOCK_D])
        else:
            v = _gather(v_from, at + offs_n, svn, offs_d, D, BLOCK_D)
        best, total, acc = _update(s, v, best, total, acc, scale_log2e, PRECISION)
    for place0 in range(0, reach, BLOCK_N):
        place = place0 + offs_n
        at = tl.load(columns + place, mask=place < reach, other=0)
        word = tl.load(bits + place // 32, mask=place < reach, other=0)
        seen = (word >> (place % 32)) & 1
        if SKIP:
            if tl.max(seen, 0) != 0:
                k = _gather(k_from, at, skn, offs_d, D, BLOCK_D)
                s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
                s = tl.where((seen != 0)[None, :], s, -float("inf"))
                v = _gather(v_from, at, svn, offs_d, D, BLOCK_D)
                best, total, acc = _update(s, v, best, total, acc, scale_log2e, PRECISION)
        else:
            k = _gather(k_from, at, skn, offs_d, D, BLOCK_D)
            s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
            s = tl.where((seen != 0)[None, :], s, -float("inf"))
            v = _gather(v_from, at, svn, offs_d, D, BLOCK_D)
            best, total, acc = _update(s, v, best, total, acc, scale_log2e, PRECISION)
    position = token + offset
    for at0 in tl.range(own * K_BLOCK, tl.minimum(token0 + BLOCK_M, q_len) + offset, BLOCK_N, num_stages=1):
        at = at0 + offs_n
        real = (at < k_len)[:, None] & (offs_d < D)[None, :]
        k = tl.load(k_from + at.to(tl.int64)[:, None] * skn, mask=real, other=0.0)
        v = tl.load(v_from + at.to(tl.int64)[:, None] * svn, mask=real, other=0.0)
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        s = tl.where(at[None, :] <= position[:, None], s, -float("inf"))
        best, total, acc = _update(s, v, best, total, acc, scale_log2e, PRECISION)

    acc = acc * (1.0 / total)[:, None]
    o_at = Out + b.to(tl.int64) * sob + head.to(tl.int64) * soh
    tl.store(o_at + token.to(tl.int64)[:, None] * som + offs_d[None, :], acc.to(Out.dtype.element_ty), mask=keep_q)


@triton.jit
def _gather(start, at, stride, offs_d, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Load keys or values [BLOCK_N, BLOCK_D] at the given positions, all of which exist."""
    where = start + at.to(tl.int64)[:, None] * stride
    if D != BLOCK_D:
        x = tl.load(where, mask=(offs_d < D)[None, :], other=0.0)
    else:
        x = tl.load(where)
    return x


@triton.jit
def _update(s, v, best, total, acc, scale_log2e, PRECISION: tl.constexpr):
    """Take one step of the running softmax; scores are scaled inside the exponent."""
    top = tl.maximum(best, tl.max(s, 1) * scale_log2e)
    p = tl.exp2(s * scale_log2e - top[:, None])
    alpha = tl.exp2(best - top)
    total = total * alpha + tl.sum(p, 1)
    acc = tl.dot(p.to(v.dtype), v, acc * alpha[:, None], input_precision=PRECISION)
    return top, total, acc


def choose_tile(device: torch.device, dtype: torch.dtype, *, dim: int, q_block: int, k_block: int, described: bool) -> Tile:
    """Return the tile of one head's query block: the rule of the block-sparse kernel, in steps of at most a key block.

    described: K and V may be read through tensor descriptors. Raises ValueError where no tile fits into the GPU's shared
    memory.
    """
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)
    pad = 1 << (dim - 1).bit_length()
    tile = _tile(capability, shared_bytes(device), dtype.itemsize, pad, q_block, k_block)
    return tile if described else replace(tile, described=False)


@lru_cache
def _tile(capability: tuple[int, int], room: int, itemsize: int, dim: int, q_block: int, k_block: int) -> Tile:
    tile = default_tile(capability, room, itemsize, dim, q_block, k_block)
    return replace(tile, rows=min(tile.rows, q_block), cols=min(tile.cols, k_block))


def column_sparse_triton(q: Tensor, k: Tensor, v: Tensor, index: ColumnIndex, *, scale: float) -> Tensor:
    """Run `attention_kernels.column_sparse.column_sparse_attention` in Triton. Raises ValueError unless `scale` is positive."""
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    tile = choose_tile(
        q.device,
        q.dtype,
        dim=q.shape[-1],
        q_block=index.q_block,
        k_block=index.k_block,
        described=describable(k) and describable(v),
    )
    return run_tile(q, k, v, index, scale=scale, tile=tile)


def run_tile(q: Tensor, k: Tensor, v: Tensor, index: ColumnIndex, *, scale: float, tile: Tile) -> Tensor:
    """Run the kernel with a tile of the caller's choice, for tuning and tests; the last dimension of q, k and v is
    contiguous."""
    if not scale > 0:
        raise ValueError(f"scale={scale} must be positive: the kernel takes a row's maximum before it scales")
    (batch, heads, q_len, dim), kv_heads = q.shape, k.shape[1]
    out, pad = torch.empty_like(q), power_of_two(dim)
    listed = (index.blocks.counts, index.blocks.indices, index.columns, index.open, index.reach)
    counts, indices, columns, open_, reach = (x.contiguous() for x in listed)
    k_from, v_from = (_descriptor(x, tile.cols, pad) for x in (k, v)) if tile.described else (k, v)
    with torch.cuda.device_of(q):  # Triton launches on the current device
        _forward[(counts.shape[-1] * (index.q_block // tile.rows) * (heads // kv_heads), batch * kv_heads)](
            q,
            k,
            v,
            k_from,
            v_from,
            out,
            counts,
            indices,
            columns,
            open_,
            reach,
            *q.stride()[:3],
            *k.stride()[:3],
            *v.stride()[:3],
            *out.stride()[:3],
            kv_heads,
            heads // kv_heads,
            heads // index.heads,
            q_len,
            k.shape[2],
            indices.shape[-1],
            columns.shape[-1],
            open_.shape[-1],
            scale * math.log2(math.e),
            D=dim,
            BLOCK_D=pad,
            Q_BLOCK=index.q_block,
            K_BLOCK=index.k_block,
            BLOCK_M=tile.rows,
            BLOCK_N=tile.cols,
            DESCRIBED=tile.described,
            SKIP=index.by_row,
            PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
    return out


def _descriptor(x: Tensor, cols: int, pad: int) -> TensorDescriptor:
    return TensorDescriptor(x, list(x.shape), list(x.stride()), [1, 1, cols, pad])
