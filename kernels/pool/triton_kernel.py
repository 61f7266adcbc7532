"""Block pooling in Triton: x is read once, whatever is pooled; the tables of RoPE are read once for several heads."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

HEADS = 8
"""Heads that one program pools with the same cos and sin. Float32 tables take twice the bytes of a bfloat16 head, so one
head a program would read three times what x has; eight read 1.25 times, from L2, and leave programs enough at 4k."""


@triton.jit
def _store(Line, x, valid, d, inside, step, tokens, MEAN: tl.constexpr, MAX: tl.constexpr, MIN: tl.constexpr):
    """Pool x [tokens, elements] down its tokens, each way to its place in the line; -1 marks a way that isn't asked for."""
    if MEAN >= 0:
        mean = tl.sum(tl.where(valid, x, 0.0), 0) / tokens
        tl.store(Line + MEAN * step + d, mean, mask=inside)
    if MAX >= 0 or MIN >= 0:
        # the hardware's max and min pass over NaN, PyTorch's don't
        bad = tl.max(tl.where(valid & (x != x), 1, 0), 0) > 0
        if MAX >= 0:
            top = tl.max(tl.where(valid, x, -float("inf")), 0)
            tl.store(Line + MAX * step + d, tl.where(bad, float("nan"), top), mask=inside)
        if MIN >= 0:
            low = tl.min(tl.where(valid, x, float("inf")), 0)
            tl.store(Line + MIN * step + d, tl.where(bad, float("nan"), low), mask=inside)


@triton.jit
def _pool(
    X, Cos, Sin, Out, sxb, sxh, sxp, scp, ssp, sob, soh, soi, heads, groups, length,
    D: tl.constexpr, HALF: tl.constexpr, PAD_HALF: tl.constexpr, PAD_REST: tl.constexpr,
    BLOCK: tl.constexpr, PAD_BLOCK: tl.constexpr, HEADS: tl.constexpr,
    MEAN: tl.constexpr, MAX: tl.constexpr, MIN: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    # the groups of heads of one block follow one another, so that all but the first find its tables in L2
    block = tl.program_id(0) // groups
    first = (tl.program_id(0) % groups * HEADS).to(tl.int64)
    b = tl.program_id(1).to(tl.int64)
    offs_p = tl.arange(0, PAD_BLOCK)
    p = block * BLOCK + offs_p
    here = (offs_p < BLOCK) & (p < length)
    tokens = tl.minimum(length - block * BLOCK, BLOCK).to(tl.float32)
    offs_h = tl.arange(0, PAD_HALF)
    offs_r = tl.arange(0, PAD_REST)
    in_half = offs_h < HALF
    in_rest = offs_r < D - 2 * HALF
    half = here[:, None] & in_half[None, :]
    rest = here[:, None] & in_rest[None, :]
    rows = X + b * sxb + p.to(tl.int64)[:, None] * sxp
    if HALF > 0:
        cos = tl.load(Cos + p.to(tl.int64)[:, None] * scp + offs_h[None, :], mask=half, other=1.0)
        sin = tl.load(Sin + p.to(tl.int64)[:, None] * ssp + offs_h[None, :], mask=half, other=0.0)
        norm = cos * cos + sin * sin  # undoes the attention scaling too
        cos = cos / norm
        sin = sin / norm
    for i in tl.range(0, tl.minimum(heads - first, HEADS).to(tl.int32), num_stages=STAGES):
        h = first + i
        line = Out + b * sob + h * soh + block.to(tl.int64) * soi
        source = rows + h * sxh
        if HALF > 0:
            one = tl.load(source + offs_h[None, :], mask=half, other=0.0).to(tl.float32)
            two = tl.load(source + HALF + offs_h[None, :], mask=half, other=0.0).to(tl.float32)
            _store(line, one * cos + two * sin, half, offs_h, in_half, D, tokens, MEAN, MAX, MIN)
            _store(line + HALF, two * cos - one * sin, half, offs_h, in_half, D, tokens, MEAN, MAX, MIN)
        if D > 2 * HALF:
            x = tl.load(source + 2 * HALF + offs_r[None, :], mask=rest, other=0.0).to(tl.float32)
            _store(line + 2 * HALF, x, rest, offs_r, in_rest, D, tokens, MEAN, MAX, MIN)


def pool_triton(
    x: Tensor, block: int, how: tuple[str, ...], cos: Tensor | None, sin: Tensor | None, *, warps: int | None = None
) -> Tensor:
    """See `kernels.pool.pool`. warps of a program: 32 elements of x for each thread, unless given."""
    if len(set(how)) < len(how):
        raise ValueError(f"how={how}: kernel=triton pools each way once; use kernel=reference")
    x = x if x.stride(-1) == 1 else x.contiguous()
    batch, heads, length, dim = x.shape
    blocks = -(-length // block)
    out = torch.empty(batch, heads, blocks, len(how) * dim, dtype=torch.float32, device=x.device)
    half = 0
    if cos is None or sin is None:
        cos = sin = out  # never read
        together = min(HEADS // 2, heads)  # no tables to share, but loads of the next head run ahead of this one's sums
    else:
        cos, sin = (t if t.stride(-1) == 1 and t.dtype == torch.float32 else t.float().contiguous() for t in (cos, sin))
        half = cos.shape[1]
        together = min(HEADS, heads)
    groups = -(-heads // together)
    place = {way: how.index(way) if way in how else -1 for way in ("mean", "max", "min")}
    pad_block = triton.next_power_of_2(block)
    with torch.cuda.device_of(x):  # Triton launches on the current device
        _pool[(blocks * groups, batch)](
            x, cos, sin, out, *x.stride()[:3], cos.stride(0), sin.stride(0), *out.stride()[:3], heads, groups, length,
            D=dim, HALF=half, PAD_HALF=triton.next_power_of_2(max(1, half)),
            PAD_REST=triton.next_power_of_2(max(1, dim - 2 * half)), BLOCK=block, PAD_BLOCK=pad_block, HEADS=together,
            MEAN=place["mean"], MAX=place["max"], MIN=place["min"], STAGES=3,
            num_warps=warps or min(16, max(4, pad_block * triton.next_power_of_2(dim) // 1024)),
        )  # fmt: skip
    return out
