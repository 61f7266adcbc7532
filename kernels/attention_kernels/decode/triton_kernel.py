"""Sparse decoding in Triton: every list of blocks is split over several programs, a second kernel combines their results.

Floor: the bytes of the selected K and V; each is read once for all query heads that share a list.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from attention_kernels.block_index import BlockIndex
from attention_kernels.decode.splits import program_slots, split_count
from attention_kernels.tiles import power_of_two, prefetch_depth, shared_bytes

TILE_BYTES = {2: 16 << 10, 4: 8 << 10}
"""Of K, and of V, that a program reads at a time, by the size of an element: 64 keys at head dim 128 in bfloat16. Two such
tiles are under way while a third is worked on, and three programs share a Hopper SM."""


@triton.jit
def _place(tile, offs_n, BLOCK_N: tl.constexpr, TILE: tl.constexpr):
    """Return where the keys of a tile lie: entry of the list, offset in the block. Scalar entry unless a tile holds several
    blocks."""
    if TILE > BLOCK_N:
        return tile * (TILE // BLOCK_N) + offs_n // BLOCK_N, offs_n % BLOCK_N
    else:
        return tile // (BLOCK_N // TILE), tile % (BLOCK_N // TILE) * TILE + offs_n


# What changes from step to step is not specialised on: no compiling in the middle of decoding.
@triton.jit(do_not_specialize=["sib", "sih", "scb", "sch", "k_len", "parts"])
def _attend(
    Q,
    K,
    V,
    Out,
    Part,
    Counts,
    Indices,
    Starts,
    sqb,
    sqh,
    sqm,
    skb,
    skh,
    skn,
    svb,
    svh,
    svn,
    scb,
    sch,
    sib,
    sih,
    lists,
    lists_per_kv,
    k_len,
    parts,
    scale_log2e,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    Q_LEN: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    TILE: tl.constexpr,
    SPLIT: tl.constexpr,
    PRECISION: tl.constexpr,
    PADDED: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Compute one split of one list: rows are the query heads of the group × queries. Out gets the result where there is one
    split, else Part gets [parts, D] float32 results, and behind them their log2-sum-exp [parts]."""
    if OVERLAP:
        tl.extra.cuda.gdc_launch_dependents()  # the combining kernel may be put on the GPU now, and waits there
    split, splits = tl.program_id(0), tl.num_programs(0)
    line = tl.program_id(1)
    b = (line // lists).to(tl.int64)
    h = (line % lists).to(tl.int64)
    offs_m = tl.arange(0, BLOCK_M)
    offs_n = tl.arange(0, TILE)
    offs_d = tl.arange(0, BLOCK_D)
    in_m = offs_m < ROWS
    in_d = offs_d < D
    heads = h * (ROWS // Q_LEN) + offs_m // Q_LEN
    q = tl.load(
        Q + b * sqb + heads[:, None] * sqh + (offs_m % Q_LEN)[:, None] * sqm + offs_d[None, :],
        mask=in_m[:, None] & in_d[None, :],
        other=0.0,
    )
    k_base = K + b * skb + (h // lists_per_kv) * skh + offs_d[None, :]
    v_base = V + b * svb + (h // lists_per_kv) * svh + offs_d[None, :]
    if PADDED:  # from here on the sequence's first key is key 0
        start = tl.load(Starts + b)
        k_len -= start
        k_base += start.to(tl.int64) * skn
        v_base += start.to(tl.int64) * svn
    positions = k_len - Q_LEN + offs_m % Q_LEN
    list_start = Indices + b * sib + h * sih
    count = tl.load(Counts + b * scb + h * sch)
    tiles = (count * BLOCK_N + TILE - 1) // TILE
    first, last = tiles * split // splits, tiles * (split + 1) // splits
    best = tl.full([BLOCK_M], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    # The next tile's entry of the list is read a turn ahead: the loads of K and V never wait for it.
    entry, offset = _place(first, offs_n, BLOCK_N, TILE)
    block = tl.load(list_start + entry, mask=entry < count, other=0)
    for i in range(first, last):
        entry, offset = _place(i, offs_n, BLOCK_N, TILE)
        cols = block * BLOCK_N + offset
        inside = (cols < k_len) & (entry < count)
        after, _ = _place(i + 1, offs_n, BLOCK_N, TILE)
        block = tl.load(list_start + after, mask=after < count, other=0)
        k = tl.load(k_base + cols.to(tl.int64)[:, None] * skn, mask=inside[:, None] & in_d[None, :], other=0.0)
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale_log2e
        s = tl.where(inside[None, :] & (cols[None, :] <= positions[:, None]), s, -float("inf"))
        top = tl.maximum(best, tl.max(s, 1))
        safe = tl.where(top == -float("inf"), 0.0, top)
        p = tl.exp2(s - safe[:, None])
        alpha = tl.exp2(best - safe)
        total = total * alpha + tl.sum(p, 1)
        v = tl.load(v_base + cols.to(tl.int64)[:, None] * svn, mask=inside[:, None] & in_d[None, :], other=0.0)
        acc = tl.dot(p.to(v.dtype), v, acc * alpha[:, None], input_precision=PRECISION)
        best = top
    total = tl.where(total == 0.0, 1.0, total)  # a row that has seen no key: best is -inf, and stays its log-sum-exp
    acc = acc / total[:, None]
    if SPLIT:
        part = (line * splits + split).to(tl.int64) * ROWS + offs_m
        tl.store(Part + parts.to(tl.int64) * D + part, best + tl.log2(total), mask=in_m)
        if last > first:
            tl.store(Part + part[:, None] * D + offs_d[None, :], acc, mask=in_m[:, None] & in_d[None, :])
    else:
        row = line.to(tl.int64) * ROWS + offs_m  # Out is contiguous: rows of a list lie behind each other
        tl.store(Out + row[:, None] * D + offs_d[None, :], acc.to(Out.dtype.element_ty), mask=in_m[:, None] & in_d[None, :])


@triton.jit(do_not_specialize=["splits", "parts"])
def _combine(
    Part,
    Out,
    splits,
    parts,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_S: tl.constexpr,
    CHUNK: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Compute one row of the output: the splits' results, weighted by their share of the softmax's denominator."""
    row = tl.program_id(0).to(tl.int64)
    start = row // ROWS * splits * ROWS + row % ROWS
    sums = Part + parts.to(tl.int64) * D + start
    offs_s = tl.arange(0, BLOCK_S)
    offs_d = tl.arange(0, BLOCK_D)
    if OVERLAP:
        tl.extra.cuda.gdc_wait()  # until the results are there
    every = tl.load(sums + offs_s * ROWS, mask=offs_s < splits, other=-float("inf"))
    top = tl.max(every, 0)
    top = tl.where(top == -float("inf"), 0.0, top)
    total = tl.sum(tl.exp2(every - top), 0)
    acc = tl.zeros([BLOCK_D], tl.float32)
    for first in range(0, splits, CHUNK):
        chunk = first + tl.arange(0, CHUNK)
        weight = tl.exp2(tl.load(sums + chunk * ROWS, mask=chunk < splits, other=-float("inf")) - top)
        values = tl.load(
            Part + (start + chunk * ROWS)[:, None] * D + offs_d[None, :],
            mask=(weight > 0.0)[:, None] & (offs_d < D)[None, :],  # a split without keys has written nothing
            other=0.0,
        )
        acc += tl.sum(values * weight[:, None], 0)
    acc = acc / tl.where(total == 0.0, 1.0, total)
    tl.store(Out + row * D + offs_d, acc.to(Out.dtype.element_ty), mask=offs_d < D)


@lru_cache
def can_overlap(device: torch.device) -> bool:
    """Say whether a kernel can be launched while the one it depends on still runs (CUDA, compute capability 9 and later)."""
    return device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device)[0] >= 9


def sparse_decode_triton(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    index: BlockIndex,
    *,
    scale: float,
    starts: Tensor | None = None,
    splits: int | None = None,
    overlap: bool | None = None,
) -> Tensor:
    """Run `attention_kernels.decode.sparse_decode` in Triton. `splits` of each list and `overlap` of the two kernels: chosen
    unless given."""
    if k.stride(-1) != 1 or v.stride(-1) != 1:
        raise ValueError("k and v must be contiguous along the head dim; a copy would cost more than the attention")
    q = q if q.stride(-1) == 1 else q.contiguous()
    counts, indices = index.counts, index.indices if index.indices.stride(-1) == 1 else index.indices.contiguous()
    batch, _, q_len, dim = q.shape
    lists, block = counts.shape[1], index.k_block
    rows = q.shape[1] // lists * q_len
    block_m = max(16, power_of_two(rows))
    pad, itemsize = power_of_two(dim), q.element_size()
    tile = max(16, min(128, TILE_BYTES[itemsize] // (pad * itemsize)))
    if splits is None:
        shared = itemsize * (4 * tile * pad + block_m * (pad + tile)) + 2048  # two stages of K and V, Q, P
        splits = split_count(batch * lists, -(-indices.shape[-1] * block // tile), program_slots(q.device, shared))
    overlap = splits > 1 and (can_overlap(q.device) if overlap is None else overlap)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    parts = batch * lists * splits * rows
    part = torch.empty(parts * (dim + 1), dtype=torch.float32, device=q.device) if splits > 1 else out
    options: dict[str, Any] = {"launch_pdl": True} if overlap else {}
    with torch.cuda.device_of(q):  # Triton launches on the current device
        _attend[(splits, batch * lists)](
            q,
            k,
            v,
            out,
            part,
            counts,
            indices,
            counts if starts is None else starts.contiguous(),
            *q.stride()[:3],
            *k.stride()[:3],
            *v.stride()[:3],
            *counts.stride()[:2],
            *indices.stride()[:2],
            lists,
            lists // k.shape[1],
            k.shape[2],
            parts,
            scale * math.log2(math.e),
            D=dim,
            BLOCK_D=pad,
            Q_LEN=q_len,
            ROWS=rows,
            BLOCK_M=block_m,
            BLOCK_N=block,
            TILE=tile,
            SPLIT=splits > 1,
            PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
            PADDED=starts is not None,
            OVERLAP=overlap,
            num_warps=8 if block_m > 64 else 4,
            num_stages=prefetch_depth(block_m, 2 * tile, pad, itemsize, shared_bytes(q.device), 2 if itemsize == 4 else 3),
        )
        if splits > 1:
            block_s = max(16, power_of_two(splits))  # few of them, so that little is compiled as keys grow
            _combine[(batch * lists * rows,)](
                part,
                out,
                splits,
                parts,
                D=dim,
                BLOCK_D=pad,
                ROWS=rows,
                BLOCK_S=block_s,
                CHUNK=min(block_s, 64),
                OVERLAP=overlap,
                num_warps=4,
                **options,
            )
    return out
