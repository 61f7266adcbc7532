# mypy: disable-error-code="no-untyped-def"
"""Pooling of one block in Triton: a warp reads its tokens a few side by side, and nothing leaves its registers."""

from __future__ import annotations

import triton
import triton.language as tl


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
def pool_block(
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
