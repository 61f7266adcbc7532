"""Block pooling in Triton: x is read once, whatever is pooled.

One warp pools one block of one head, a few tokens side by side, and nothing leaves its registers: many such programs on an SM
keep memory busy. Each reads RoPE's tables for itself, from L2, where the programs of the other heads of its block find them
too; in `_pool_pair` a program takes two heads of queries with one reading of the tables.
Measured on an H100 before that (32 heads of 128, 131,072 tokens): 0.41 ms for 1.07 GB, against 0.63 ms where a program pools
eight heads one after another.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from attention_kernels.rope import kernel_tables


@triton.jit
def _load(at, inside, MASKED: tl.constexpr):
    """Load what is inside as float32; without MASKED all is."""
    if MASKED:
        return tl.load(at, mask=inside, other=0.0).to(tl.float32)
    else:
        return tl.load(at).to(tl.float32)


@triton.jit
def _gather(x, valid, total, top, low, WHOLE: tl.constexpr, MEAN: tl.constexpr, MAX: tl.constexpr, MIN: tl.constexpr):
    """Add tokens x [T, elements] to what was pooled of the tokens before them, each token of a turn on its own. valid [T, 1]:
    without WHOLE the others repeat a token, which changes neither its maximum nor its minimum."""
    if MEAN >= 0:
        total += x if WHOLE else tl.where(valid, x, 0.0)
    if MAX >= 0:
        top = tl.maximum(top, x, propagate_nan=tl.PropagateNan.ALL)
    if MIN >= 0:
        low = tl.minimum(low, x, propagate_nan=tl.PropagateNan.ALL)
    return total, top, low


@triton.jit
def _store(Line, total, top, low, d, inside, step, tokens, undo, MEAN: tl.constexpr, MAX: tl.constexpr, MIN: tl.constexpr):
    """Pool [T, elements] down to one, each way times undo to its place in the line; -1 marks a way that isn't asked for."""
    if MEAN >= 0:
        tl.store(Line + MEAN * step + d, tl.sum(total, 0) / tokens * undo, mask=inside)
    # the hardware's max and min pass over NaN, PyTorch's don't
    if MAX >= 0:
        bad = tl.max((top != top).to(tl.int32), 0) > 0
        tl.store(Line + MAX * step + d, tl.where(bad, float("nan"), tl.max(top, 0) * undo), mask=inside)
    if MIN >= 0:
        bad = tl.max((low != low).to(tl.int32), 0) > 0
        tl.store(Line + MIN * step + d, tl.where(bad, float("nan"), tl.min(low, 0) * undo), mask=inside)


@triton.jit
def _turn_back(at, cos, sin, inside, HALF: tl.constexpr, MASKED: tl.constexpr):
    """Return both halves of tokens with RoPE undone, but for its scaling."""
    one = _load(at, inside, MASKED)
    two = _load(at + HALF, inside, MASKED)
    return one * cos + two * sin, two * cos - one * sin


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
    part,
    D: tl.constexpr,
    HALF: tl.constexpr,
    PAD_HALF: tl.constexpr,
    PAD_REST: tl.constexpr,
    BLOCK: tl.constexpr,
    TURN: tl.constexpr,
    SPLIT: tl.constexpr,
    TWO: tl.constexpr,
    MEAN: tl.constexpr,
    MAX: tl.constexpr,
    MIN: tl.constexpr,
):
    """Pool one block of a head h of a row b of X to its line of Out: the part-th of SPLIT parts of its pairs of elements. TWO:
    and that of the next head, which shares what is read of the tables; all its elements rotate.

    RoPE's scaling is one number for a whole table, and positive: the block's first token tells it, and what was pooled is
    divided by its square.
    """
    PAIRS: tl.constexpr = PAD_HALF // SPLIT
    MASKED: tl.constexpr = PAD_HALF > HALF
    MASKED_REST: tl.constexpr = PAD_REST > D - 2 * HALF
    tokens = tl.minimum(length - block * BLOCK, BLOCK)
    whole = tokens // TURN * TURN  # tokens that need no mask
    p = tl.arange(0, TURN).to(tl.int64)[:, None]
    offs_h = part * PAIRS + tl.arange(0, PAIRS)
    offs_r = tl.arange(0, PAD_REST)
    in_half = offs_h < HALF
    in_rest = offs_r < D - 2 * HALF
    half = in_half[None, :]
    rest = in_rest[None, :]
    first = (block * BLOCK).to(tl.int64)
    source = X + b * sxb + h * sxh + first * sxp
    cosines = Cos + first * scp
    sines = Sin + first * ssp
    total1 = tl.zeros([TURN, PAIRS], tl.float32)
    top1 = tl.full([TURN, PAIRS], -float("inf"), tl.float32)
    low1 = tl.full([TURN, PAIRS], float("inf"), tl.float32)
    total2, top2, low2 = total1, top1, low1
    total4, top4, low4 = total1, top1, low1
    total5, top5, low5 = total1, top1, low1
    total3 = tl.zeros([TURN, PAD_REST], tl.float32)
    top3 = tl.full([TURN, PAD_REST], -float("inf"), tl.float32)
    low3 = tl.full([TURN, PAD_REST], float("inf"), tl.float32)
    x_at = p * sxp + offs_h[None, :]
    cos_at = p * scp + offs_h[None, :]
    sin_at = p * ssp + offs_h[None, :]
    rest_at = 2 * HALF + p * sxp + offs_r[None, :]
    valid = p < BLOCK
    # two turns at once: a program waits for memory half as often
    for start in tl.range(0, whole, TURN, loop_unroll_factor=2):
        at = tl.cast(start, tl.int64)
        if HALF > 0:
            cos = _load(cosines + at * scp + cos_at, half, MASKED)
            sin = _load(sines + at * ssp + sin_at, half, MASKED)
            one, two = _turn_back(source + at * sxp + x_at, cos, sin, half, HALF, MASKED)
            total1, top1, low1 = _gather(one, valid, total1, top1, low1, True, MEAN, MAX, MIN)
            total2, top2, low2 = _gather(two, valid, total2, top2, low2, True, MEAN, MAX, MIN)
            if TWO:
                one, two = _turn_back(source + sxh + at * sxp + x_at, cos, sin, half, HALF, MASKED)
                total4, top4, low4 = _gather(one, valid, total4, top4, low4, True, MEAN, MAX, MIN)
                total5, top5, low5 = _gather(two, valid, total5, top5, low5, True, MEAN, MAX, MIN)
        if D > 2 * HALF:
            x = _load(source + at * sxp + rest_at, rest, MASKED_REST)
            total3, top3, low3 = _gather(x, valid, total3, top3, low3, True, MEAN, MAX, MIN)
    if whole < tokens:
        valid = whole + p < tokens
        at = tl.minimum(whole + p, tokens - 1)
        if HALF > 0:
            cos = _load(cosines + at * scp + offs_h[None, :], half, MASKED)
            sin = _load(sines + at * ssp + offs_h[None, :], half, MASKED)
            one, two = _turn_back(source + at * sxp + offs_h[None, :], cos, sin, half, HALF, MASKED)
            total1, top1, low1 = _gather(one, valid, total1, top1, low1, False, MEAN, MAX, MIN)
            total2, top2, low2 = _gather(two, valid, total2, top2, low2, False, MEAN, MAX, MIN)
            if TWO:
                one, two = _turn_back(source + sxh + at * sxp + offs_h[None, :], cos, sin, half, HALF, MASKED)
                total4, top4, low4 = _gather(one, valid, total4, top4, low4, False, MEAN, MAX, MIN)
                total5, top5, low5 = _gather(two, valid, total5, top5, low5, False, MEAN, MAX, MIN)
        if D > 2 * HALF:
            x = _load(source + 2 * HALF + at * sxp + offs_r[None, :], rest, MASKED_REST)
            total3, top3, low3 = _gather(x, valid, total3, top3, low3, False, MEAN, MAX, MIN)
    line = Out + b * sob + h * soh + block.to(tl.int64) * soi
    if HALF > 0:
        cos = tl.load(cosines + offs_h, mask=in_half, other=1.0)
        sin = tl.load(sines + offs_h, mask=in_half, other=0.0)
        undo = 1.0 / (cos * cos + sin * sin)  # the scaling, squared: 1 where there is none
        _store(line, total1, top1, low1, offs_h, in_half, D, tokens, undo, MEAN, MAX, MIN)
        _store(line + HALF, total2, top2, low2, offs_h, in_half, D, tokens, undo, MEAN, MAX, MIN)
        if TWO:
            _store(line + soh, total4, top4, low4, offs_h, in_half, D, tokens, undo, MEAN, MAX, MIN)
            _store(line + soh + HALF, total5, top5, low5, offs_h, in_half, D, tokens, undo, MEAN, MAX, MIN)
    if D > 2 * HALF:
        _store(line + 2 * HALF, total3, top3, low3, offs_r, in_rest, D, tokens, 1.0, MEAN, MAX, MIN)


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
    _pool_block(
        X, Cos, Sin, Out, *strides, b, h, block, length, 0, D, HALF, PAD_HALF, PAD_REST, BLOCK, TURN, 1, False, MEAN, MAX, MIN
    )


@triton.jit(do_not_specialize=["q_length", "k_length", "k_programs"])
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
    k_programs,
    D: tl.constexpr,
    HALF: tl.constexpr,
    PAD_HALF: tl.constexpr,
    PAD_REST: tl.constexpr,
    BLOCK: tl.constexpr,
    TURN: tl.constexpr,
    K_SPLIT: tl.constexpr,
    Q_TWO: tl.constexpr,
    Q_MEAN: tl.constexpr,
    Q_MAX: tl.constexpr,
    Q_MIN: tl.constexpr,
    K_MEAN: tl.constexpr,
    K_MAX: tl.constexpr,
    K_MIN: tl.constexpr,
):
    """Pool a part of a block of keys in each of the first `k_programs` programs, a block of queries in the others, with
    Q_TWO of two heads. Cos, Sin: of the keys."""
    me = tl.program_id(0)
    b = tl.program_id(1).to(tl.int64)
    if me < k_programs:  # pooled in more ways, they take longest: first
        own = me // K_SPLIT
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
            me % K_SPLIT,
            D,
            HALF,
            PAD_HALF,
            PAD_REST,
            BLOCK,
            TURN * K_SPLIT,
            K_SPLIT,
            False,
            K_MEAN,
            K_MAX,
            K_MIN,
        )
    else:
        own = me - k_programs
        q_teams = q_heads // 2 if Q_TWO else q_heads
        h = (own % q_teams).to(tl.int64) * (2 if Q_TWO else 1)
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
            own // q_teams,
            q_length,
            0,
            D,
            HALF,
            PAD_HALF,
            PAD_REST,
            BLOCK,
            TURN,
            1,
            Q_TWO,
            Q_MEAN,
            Q_MAX,
            Q_MIN,
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
    split = 2 if dim == 2 * half >= 32 else 1
    # Heads share what is read of the tables, twice what is read of one head: more than L2 brings where each reads its own
    two = dim == 2 * half and len(q_how) == 1 and q_heads % 2 == 0
    q_programs = q_blocks * q_heads // (2 if two else 1)
    with torch.cuda.device_of(q):  # Triton launches on the current device
        _pool_pair[(k_blocks * k_heads * split + q_programs, batch)](
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
            k_blocks * k_heads * split,
            BLOCK=block,
            K_SPLIT=split,
            Q_TWO=two,
            Q_MEAN=q_places[0],
            Q_MAX=q_places[1],
            Q_MIN=q_places[2],
            K_MEAN=k_places[0],
            K_MAX=k_places[1],
            K_MIN=k_places[2],
            maxnreg=128,  # 16 programs an SM: all at once for 8k tokens
            **_widths(dim, half, q.is_cuda),
        )
    return out_q, out_k
