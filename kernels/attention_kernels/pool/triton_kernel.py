"""Block pooling in Triton: x is read once, whatever is pooled.

One warp pools one block of one head, a few tokens side by side, and nothing leaves its registers: many such programs on an SM
keep memory busy. Each reads RoPE's tables for itself, from L2, where the programs of the other heads of its block find them
too. Measured on an H100 (32 query heads of 128, 131,072 tokens): 0.41 ms for 1.07 GB, against 0.63 ms where a program pools
eight heads one after another.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from attention_kernels.rope import kernel_tables


@triton.jit
def _gather(x, valid, total, top, low, MEAN: tl.constexpr, MAX: tl.constexpr, MIN: tl.constexpr):
    """Add tokens x [T, elements] to what was pooled of the tokens before them, each token of a turn on its own."""
    if MEAN >= 0:
        total += tl.where(valid, x, 0.0)
    if MAX >= 0:
        top = tl.maximum(top, tl.where(valid, x, -float("inf")), propagate_nan=tl.PropagateNan.ALL)
    if MIN >= 0:
        low = tl.minimum(low, tl.where(valid, x, float("inf")), propagate_nan=tl.PropagateNan.ALL)
    return total, top, low


@triton.jit
def _store(Line, total, top, low, d, inside, step, tokens, MEAN: tl.constexpr, MAX: tl.constexpr, MIN: tl.constexpr):
    """Pool [T, elements] down to one, each way to its place in the line; -1 marks a way that isn't asked for."""
    if MEAN >= 0:
        tl.store(Line + MEAN * step + d, tl.sum(total, 0) / tokens, mask=inside)
    # the hardware's max and min pass over NaN, PyTorch's don't
    if MAX >= 0:
        bad = tl.max((top != top).to(tl.int32), 0) > 0
        tl.store(Line + MAX * step + d, tl.where(bad, float("nan"), tl.max(top, 0)), mask=inside)
    if MIN >= 0:
        bad = tl.max((low != low).to(tl.int32), 0) > 0
        tl.store(Line + MIN * step + d, tl.where(bad, float("nan"), tl.min(low, 0)), mask=inside)


@triton.jit
def _pool_block(
    X,
    Cos,
    Sin,
    Out,
    sxb,
    sxh,
    sxp,
    scp,
    ssp,
    sob,
    soh,
    soi,
    b,
    h,
    block,
    length,
    D: tl.constexpr,
    HALF: tl.constexpr,
    PAD_HALF: tl.constexpr,
    PAD_REST: tl.constexpr,
    BLOCK: tl.constexpr,
    TURN: tl.constexpr,
    MEAN: tl.constexpr,
    MAX: tl.constexpr,
    MIN: tl.constexpr,
):
    """Pool one block of a head h of a row b of X to its line of Out."""
    tokens = tl.minimum(length - block * BLOCK, BLOCK)
    offs_p = tl.arange(0, TURN)
    offs_h = tl.arange(0, PAD_HALF)
    offs_r = tl.arange(0, PAD_REST)
    in_half = offs_h < HALF
    in_rest = offs_r < D - 2 * HALF
    total1 = tl.zeros([TURN, PAD_HALF], tl.float32)
    top1 = tl.full([TURN, PAD_HALF], -float("inf"), tl.float32)
    low1 = tl.full([TURN, PAD_HALF], float("inf"), tl.float32)
    total2, top2, low2 = total1, top1, low1
    total3 = tl.zeros([TURN, PAD_REST], tl.float32)
    top3 = tl.full([TURN, PAD_REST], -float("inf"), tl.float32)
    low3 = tl.full([TURN, PAD_REST], float("inf"), tl.float32)
    for start in range(0, tokens, TURN):
        in_block = start + offs_p < tokens
        p = (block * BLOCK + start + offs_p).to(tl.int64)
        source = X + b * sxb + h * sxh + p[:, None] * sxp
        if HALF > 0:
            half = in_block[:, None] & in_half[None, :]
            one = tl.load(source + offs_h[None, :], mask=half, other=0.0).to(tl.float32)
            two = tl.load(source + HALF + offs_h[None, :], mask=half, other=0.0).to(tl.float32)
            cos = tl.load(Cos + p[:, None] * scp + offs_h[None, :], mask=half, other=1.0)
            sin = tl.load(Sin + p[:, None] * ssp + offs_h[None, :], mask=half, other=0.0)
            undo = 1.0 / (cos * cos + sin * sin)  # the attention scaling, squared: 1 where there is none
            cos *= undo
            sin *= undo
            total1, top1, low1 = _gather(one * cos + two * sin, half, total1, top1, low1, MEAN, MAX, MIN)
            total2, top2, low2 = _gather(two * cos - one * sin, half, total2, top2, low2, MEAN, MAX, MIN)
        if D > 2 * HALF:
            rest = in_block[:, None] & in_rest[None, :]
            x = tl.load(source + 2 * HALF + offs_r[None, :], mask=rest, other=0.0).to(tl.float32)
            total3, top3, low3 = _gather(x, rest, total3, top3, low3, MEAN, MAX, MIN)
    line = Out + b * sob + h * soh + block.to(tl.int64) * soi
    if HALF > 0:
        _store(line, total1, top1, low1, offs_h, in_half, D, tokens, MEAN, MAX, MIN)
        _store(line + HALF, total2, top2, low2, offs_h, in_half, D, tokens, MEAN, MAX, MIN)
    if D > 2 * HALF:
        _store(line + 2 * HALF, total3, top3, low3, offs_r, in_rest, D, tokens, MEAN, MAX, MIN)


# What changes with a prompt's length is not specialised on: no compiling for each length.
@triton.jit(do_not_specialize=["length"])
def _pool(
    X,
    Cos,
    Sin,
    Out,
    sxb,
    sxh,
    sxp,
    scp,
    ssp,
    sob,
    soh,
    soi,
    heads,
    length,
    D: tl.constexpr,
    HALF: tl.constexpr,
    PAD_HALF: tl.constexpr,
    PAD_REST: tl.constexpr,
    BLOCK: tl.constexpr,
    TURN: tl.constexpr,
    MEAN: tl.constexpr,
    MAX: tl.constexpr,
    MIN: tl.constexpr,
):
    block = tl.program_id(0) // heads  # the heads of one block follow one another
    h = (tl.program_id(0) % heads).to(tl.int64)
    b = tl.program_id(1).to(tl.int64)
    strides = (sxb, sxh, sxp, scp, ssp, sob, soh, soi)
    _pool_block(X, Cos, Sin, Out, *strides, b, h, block, length, D, HALF, PAD_HALF, PAD_REST, BLOCK, TURN, MEAN, MAX, MIN)


@triton.jit(do_not_specialize=["q_length", "k_length", "q_programs"])
def _pool_pair(
    Q,
    K,
    Cos,
    Sin,
    OutQ,
    OutK,
    sqb,
    sqh,
    sqp,
    skb,
    skh,
    skp,
    scp,
    ssp,
    sob,
    soh,
    soi,
    spb,
    sph,
    spi,
    q_heads,
    k_heads,
    q_length,
    k_length,
    q_programs,
    D: tl.constexpr,
    HALF: tl.constexpr,
    PAD_HALF: tl.constexpr,
    PAD_REST: tl.constexpr,
    BLOCK: tl.constexpr,
    TURN: tl.constexpr,
    Q_MEAN: tl.constexpr,
    Q_MAX: tl.constexpr,
    Q_MIN: tl.constexpr,
    K_MEAN: tl.constexpr,
    K_MAX: tl.constexpr,
    K_MIN: tl.constexpr,
):
    """Pool a block of queries in each of the first `q_programs` programs, one of keys in the others. Cos, Sin: of the keys."""
    me = tl.program_id(0)
    b = tl.program_id(1).to(tl.int64)
    if me < q_programs:
        h = (me % q_heads).to(tl.int64)
        ahead = (k_length - q_length).to(tl.int64)
        strides = (sqb, sqh, sqp, scp, ssp, sob, soh, soi)
        _pool_block(
            Q,
            Cos + ahead * scp,
            Sin + ahead * ssp,
            OutQ,
            *strides,
            b,
            h,
            me // q_heads,
            q_length,
            D,
            HALF,
            PAD_HALF,
            PAD_REST,
            BLOCK,
            TURN,
            Q_MEAN,
            Q_MAX,
            Q_MIN,
        )
    else:
        own = me - q_programs
        h = (own % k_heads).to(tl.int64)
        strides = (skb, skh, skp, scp, ssp, spb, sph, spi)
        _pool_block(
            K,
            Cos,
            Sin,
            OutK,
            *strides,
            b,
            h,
            own // k_heads,
            k_length,
            D,
            HALF,
            PAD_HALF,
            PAD_REST,
            BLOCK,
            TURN,
            K_MEAN,
            K_MAX,
            K_MIN,
        )


def _places(how: tuple[str, ...]) -> tuple[int, int, int]:
    """Return where mean, max and min go among the ways `how`, -1 for one that isn't asked for. Raises ValueError for a way that
    comes twice."""
    if len(set(how)) < len(how):
        raise ValueError(f"how={how}: kernel=triton pools each way once; use kernel=reference")
    mean, top, low = (how.index(way) if way in how else -1 for way in ("mean", "max", "min"))
    return mean, top, low


def _widths(dim: int, half: int, is_cuda: bool) -> dict[str, int]:
    """Return the constants and warps of a kernel for heads of `dim` elements of which 2 · `half` rotate."""
    columns = triton.next_power_of_2(max(half, dim - 2 * half))
    return {
        "D": dim,
        "HALF": half,
        "PAD_HALF": triton.next_power_of_2(max(1, half)),
        "PAD_REST": triton.next_power_of_2(max(1, dim - 2 * half)),
        "TURN": max(1, 256 // columns) if is_cuda else 16,  # one load of 16 bytes a lane
        "num_warps": 1,
    }


def pool_triton(x: Tensor, block: int, how: tuple[str, ...], cos: Tensor | None, sin: Tensor | None) -> Tensor:
    """Run `attention_kernels.pool.pool` in Triton."""
    mean, top, low = _places(how)
    x = x if x.stride(-1) == 1 else x.contiguous()
    batch, heads, length, dim = x.shape
    blocks = -(-length // block)
    out = torch.empty(batch, heads, blocks, len(how) * dim, dtype=torch.float32, device=x.device)
    cos, sin, half = kernel_tables(cos, sin, unread=out)
    with torch.cuda.device_of(x):  # Triton launches on the current device
        _pool[(blocks * heads, batch)](
            x,
            cos,
            sin,
            out,
            *x.stride()[:3],
            cos.stride(0),
            sin.stride(0),
            *out.stride()[:3],
            heads,
            length,
            BLOCK=block,
            MEAN=mean,
            MAX=top,
            MIN=low,
            **_widths(dim, half, x.is_cuda),
        )
    return out


def pool_pair_triton(
    q: Tensor,
    k: Tensor,
    block: int,
    q_how: tuple[str, ...],
    k_how: tuple[str, ...],
    cos: Tensor | None,
    sin: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Run `attention_kernels.pool.pool_pair` in Triton."""
    q_places, k_places = _places(q_how), _places(k_how)
    q, k = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k))
    (batch, q_heads, q_length, dim), (_, k_heads, k_length, _) = q.shape, k.shape
    q_blocks, k_blocks = -(-q_length // block), -(-k_length // block)
    out_q = torch.empty(batch, q_heads, q_blocks, len(q_how) * dim, dtype=torch.float32, device=q.device)
    out_k = torch.empty(batch, k_heads, k_blocks, len(k_how) * dim, dtype=torch.float32, device=q.device)
    cos, sin, half = kernel_tables(cos, sin, unread=out_k)
    with torch.cuda.device_of(q):  # Triton launches on the current device
        _pool_pair[(q_blocks * q_heads + k_blocks * k_heads, batch)](
            q,
            k,
            cos,
            sin,
            out_q,
            out_k,
            *q.stride()[:3],
            *k.stride()[:3],
            cos.stride(0),
            sin.stride(0),
            *out_q.stride()[:3],
            *out_k.stride()[:3],
            q_heads,
            k_heads,
            q_length,
            k_length,
            q_blocks * q_heads,
            BLOCK=block,
            Q_MEAN=q_places[0],
            Q_MAX=q_places[1],
            Q_MIN=q_places[2],
            K_MEAN=k_places[0],
            K_MAX=k_places[1],
            K_MIN=k_places[2],
            **_widths(dim, half, q.is_cuda),
        )
    return out_q, out_k
