# mypy: disable-error-code="no-untyped-def"
"""Vectors as two float16 ones, so that tensor cores multiply them at nearly float32 precision: of queries that share an index
and read the same keys, their mean.

Each row is scaled by a power of two (exact) to a largest element of 2^11 to 2^12, and split: x = unit · (high + low), 11 bits
each. The product is high·high + (high·low + low·high), with an error of 2^-22 of its factors: as good as three TF32 products
("tf32x3") at twice their speed, as float16 runs at twice the speed of TF32, and without splitting each tile anew.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from attention_kernels.tiles import power_of_two


@dataclass(frozen=True)
class Halves:
    """parts [2, B, H, M, D] float16, high and low; unit [B, H, M] float32."""

    parts: Tensor
    unit: Tensor


@triton.jit
def _split_rows(
    X,
    High,
    Low,
    Unit,
    tile,
    sxb,
    sxh,
    sxm,
    heads,
    rows,
    total,
    D: tl.constexpr,
    PAD_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    SHARE: tl.constexpr,
):
    row = tile * BLOCK_M + tl.arange(0, BLOCK_M)  # of all heads
    head = row // rows
    b = (head // heads).to(tl.int64)
    h = (head % heads).to(tl.int64)
    d = tl.arange(0, PAD_D)
    inside = (row < total)[:, None] & (d < D)[None, :]
    at = X + (b * sxb + h * SHARE * sxh + (row % rows).to(tl.int64) * sxm)[:, None] + d[None, :]
    x = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    if SHARE > 1:
        for g in tl.static_range(1, SHARE):
            x += tl.load(at + g * sxh, mask=inside, other=0.0).to(tl.float32)
        x *= 1.0 / SHARE
    exponent = tl.max(tl.abs(x), 1).to(tl.int32, bitcast=True) >> 23
    exponent = tl.minimum(tl.maximum(exponent, 13), 254) - 11
    unit = (exponent << 23).to(tl.float32, bitcast=True)
    x = x * ((254 - exponent) << 23).to(tl.float32, bitcast=True)[:, None]
    high = x.to(tl.float16)
    low = x - high.to(tl.float32)
    low = tl.where(low == low, low, 0.0).to(tl.float16)  # infinite: all of it is in high
    place = row.to(tl.int64)[:, None] * D + d[None, :]
    tl.store(High + place, high, mask=inside)
    tl.store(Low + place, low, mask=inside)
    tl.store(Unit + row, unit, mask=row < total)


# What changes with a prompt's length is not specialised on: no compiling for each length.
@triton.jit(do_not_specialize=["q_heads", "k_heads", "q_rows", "k_rows", "q_total", "k_total", "q_tiles"])
def _split(
    Q,
    K,
    QHigh,
    QLow,
    KHigh,
    KLow,
    QUnit,
    KUnit,
    sqb,
    sqh,
    sqm,
    skb,
    skh,
    skm,
    q_heads,
    k_heads,
    q_rows,
    k_rows,
    q_total,
    k_total,
    q_tiles,
    D: tl.constexpr,
    PAD_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    SHARE: tl.constexpr,
):
    tile = tl.program_id(0)
    if tile < q_tiles:
        _split_rows(Q, QHigh, QLow, QUnit, tile, sqb, sqh, sqm, q_heads, q_rows, q_total, D, PAD_D, BLOCK_M, SHARE)
    else:
        _split_rows(K, KHigh, KLow, KUnit, tile - q_tiles, skb, skh, skm, k_heads, k_rows, k_total, D, PAD_D, BLOCK_M, 1)


def split_halves(q: Tensor, k: Tensor, share: int = 1) -> tuple[Halves, Halves]:
    """Split q [B, Hq, M, D] and k [B, Hk, N, D] with unit last stride, in one launch. Of q the mean of every `share` heads."""
    heads = q.shape[1] // share
    shapes = [(q.shape[0], heads, *q.shape[2:]), tuple(k.shape)]
    halves = []
    for shape in shapes:
        parts = torch.empty(2, *shape, dtype=torch.float16, device=q.device)
        halves.append(Halves(parts, torch.empty(shape[:3], dtype=torch.float32, device=q.device)))
    dim, block = q.shape[3], 32
    totals = [shape[0] * shape[1] * shape[2] for shape in shapes]
    tiles = [-(-total // block) for total in totals]
    with torch.cuda.device_of(q):  # Triton launches on the current device
        _split[(sum(tiles),)](
            q,
            k,
            *halves[0].parts,
            *halves[1].parts,
            halves[0].unit,
            halves[1].unit,
            *q.stride()[:3],
            *k.stride()[:3],
            heads,
            k.shape[1],
            q.shape[2],
            k.shape[2],
            *totals,
            tiles[0],
            D=dim,
            PAD_D=power_of_two(dim),
            BLOCK_M=block,
            SHARE=share,
            num_warps=4,
        )
    return halves[0], halves[1]
