"""Dense attention of few queries in Triton: the keys of a tile of queries are split over several programs, a second kernel
(`combine_kernel`) puts their results together.

A tile holds the queries of all heads that read one KV head, token by token. Programs of one part of the keys run side by side.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from attention_kernels.block_sparse.triton_kernel import LOWEST, load_step, softmax_step
from attention_kernels.block_sparse.triton_tuning import Tile, choose_tile, describable
from attention_kernels.decode.splits import program_slots, split_count
from attention_kernels.decode.triton_kernel import can_overlap
from attention_kernels.full_rows.combine_kernel import combine_parts
from attention_kernels.tiles import power_of_two

ROWS = 128
"""Query rows of a tile at most."""
COLS = 64
"""Keys of a step at most."""


# What changes with a prompt's length is not specialised on: one compiled kernel serves all.
@triton.jit(do_not_specialize=["kv_heads", "group", "q_len", "k_len"])
def _attend(
    Q,
    K,
    V,
    Out,
    Part,
    Sizes,
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
    q_len,
    k_len,
    scale_log2e,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    DESCRIBED: tl.constexpr,
    SPLIT: tl.constexpr,
    PRECISION: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Compute a tile of queries over one part of its keys. Out gets the result where there is one part, else Part and Sizes do,
    as `combine_parts` takes them."""
    if OVERLAP:
        tl.extra.cuda.gdc_launch_dependents()  # the combining kernel may be put on the GPU now, and waits there
    tile = tl.program_id(0)
    split = tl.program_id(1)
    splits = tl.num_programs(1)
    line = tl.program_id(2)
    b = line // kv_heads
    hk = line % kv_heads
    rows = q_len * group
    row = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    real = row < rows
    token = row // group
    head = hk * group + row % group
    offs_n = tl.arange(0, BLOCK_N)
    offs_d = tl.arange(0, BLOCK_D)
    keep = real[:, None] & (offs_d < D)[None, :]
    q_at = b.to(tl.int64) * sqb + head.to(tl.int64) * sqh + token.to(tl.int64) * sqm
    q = tl.load(Q + q_at[:, None] + offs_d[None, :], mask=keep, other=0.0)

    offset = k_len - q_len
    positions = token + offset
    first = tile * BLOCK_M // group + offset  # position of the tile's first query, and of its last
    last = tl.minimum((tile * BLOCK_M + BLOCK_M - 1) // group, q_len - 1) + offset
    steps = last // BLOCK_N + 1
    begin = steps * split // splits
    end = steps * (split + 1) // splits
    free = tl.minimum(tl.maximum((first + 1) // BLOCK_N, begin), end)  # before it every query sees all keys of a step

    best = tl.full([BLOCK_M], LOWEST, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    k_from, v_from = K, V
    if not DESCRIBED:
        k_from += b.to(tl.int64) * skb + hk.to(tl.int64) * skh
        v_from += b.to(tl.int64) * svb + hk.to(tl.int64) * svh
    for i in range(begin, free):
        at = i * BLOCK_N
        k = load_step(k_from, at, b, hk, skn, k_len, offs_n, offs_d, D, BLOCK_D, BLOCK_N, 1, DESCRIBED, False)
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        v = load_step(v_from, at, b, hk, svn, k_len, offs_n, offs_d, D, BLOCK_D, BLOCK_N, 1, DESCRIBED, False)
        best, total, acc = softmax_step(s, v, best, total, acc, scale_log2e, PRECISION)
    for i in tl.range(free, end, num_stages=1):
        at = i * BLOCK_N
        k = load_step(k_from, at, b, hk, skn, k_len, offs_n, offs_d, D, BLOCK_D, BLOCK_N, 1, DESCRIBED, True)
        v = load_step(v_from, at, b, hk, svn, k_len, offs_n, offs_d, D, BLOCK_D, BLOCK_N, 1, DESCRIBED, True)
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        s = tl.where((at + offs_n)[None, :] <= positions[:, None], s, -float("inf"))
        best, total, acc = softmax_step(s, v, best, total, acc, scale_log2e, PRECISION)

    if SPLIT:
        # A part may hold no key that a query sees: its size is minus infinity then, its output NaN
        acc = acc * (1.0 / total)[:, None]
        part = (line * splits + split).to(tl.int64) * rows + row
        tl.store(Sizes + part, best + tl.log2(total), mask=real)
        tl.store(Part + part[:, None] * D + offs_d[None, :], acc, mask=keep)
    else:
        acc = acc * (1.0 / total)[:, None]
        o_at = b.to(tl.int64) * sob + head.to(tl.int64) * soh + token.to(tl.int64) * som
        tl.store(Out + o_at[:, None] + offs_d[None, :], acc.to(Out.dtype.element_ty), mask=keep)


def full_rows_triton(q: Tensor, k: Tensor, v: Tensor, out: Tensor, *, scale: float) -> None:
    """Run `attention_kernels.full_rows.full_row_attention` in Triton. Raises ValueError unless `scale` is positive."""
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    rows = q.shape[1] // k.shape[1] * q.shape[2]
    tile = choose_tile(
        q.device,
        q.dtype,
        dim=q.shape[-1],
        q_block=max(16, min(ROWS, power_of_two(rows))),
        k_block=COLS,
        shared=1,
        described=describable(k) and describable(v),
    )
    run_split(q, k, v, out, scale=scale, tile=tile)


def run_split(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    *,
    scale: float,
    tile: Tile,
    splits: int | None = None,
    overlap: bool | None = None,
) -> None:
    """Run the kernel with a tile of the caller's choice; `splits` of the keys and `overlap` of the two kernels: chosen unless
    given. The last dimension of q, k and v is contiguous."""
    if not scale > 0:
        raise ValueError(f"scale={scale} must be positive: the kernel takes a row's maximum before it scales")
    if out.stride(-1) != 1:
        own = torch.empty_like(q)
        run_split(q, k, v, own, scale=scale, tile=tile, splits=splits, overlap=overlap)
        out.copy_(own)
        return
    batch, heads, q_len, dim = q.shape
    kv_heads, k_len = k.shape[1:3]
    rows, lines, pad = heads // kv_heads * q_len, batch * kv_heads, max(16, power_of_two(dim))
    tiles = -(-rows // tile.rows)
    if splits is None:
        shared = q.element_size() * pad * (tile.rows + 2 * tile.stages * tile.cols)
        splits = split_count(lines * tiles, -(-k_len // tile.cols), program_slots(q.device, shared))
    overlap = splits > 1 and (can_overlap(q.device) if overlap is None else overlap)
    part = sizes = out  # never read
    if splits > 1:
        part = torch.empty(lines, splits, rows, dim, dtype=torch.float32, device=q.device)
        sizes = torch.empty(lines, splits, rows, dtype=torch.float32, device=q.device)
    k_from, v_from = (
        (TensorDescriptor(x, list(x.shape), list(x.stride()), [1, 1, tile.cols, pad]) for x in (k, v))
        if (tile.described)
        else (k, v)
    )
    with torch.cuda.device_of(q):  # Triton launches on the current device
        _attend[(tiles, splits, lines)](
            q,
            k_from,
            v_from,
            out,
            part,
            sizes,
            *q.stride()[:3],
            *k.stride()[:3],
            *v.stride()[:3],
            *out.stride()[:3],
            kv_heads,
            heads // kv_heads,
            q_len,
            k_len,
            scale * math.log2(math.e),
            D=dim,
            BLOCK_D=pad,
            BLOCK_M=tile.rows,
            BLOCK_N=tile.cols,
            DESCRIBED=tile.described,
            SPLIT=splits > 1,
            PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
            OVERLAP=overlap,
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
    if splits > 1:
        combine_parts(part, sizes, out, q_block=q_len, group=heads // kv_heads, splits=splits, overlap=overlap)
