# mypy: disable-error-code="no-untyped-def"
"""What a program pools, in Triton: one block of one or more heads, which never leaves registers; `triton_kernel.py` launches
them."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _load(at, inside, MASKED: tl.constexpr):
    """Load what is inside; without MASKED all is."""
    if MASKED:
        return tl.load(at, mask=inside, other=0.0)
    else:
        return tl.load(at)


@triton.jit
def _gather(x, valid, total, top, low, WHOLE: tl.constexpr, MEAN: tl.constexpr, MAX: tl.constexpr, MIN: tl.constexpr):
    """Add tokens x [H, T, elements] to what was pooled of the tokens before them, each token of a turn on its own. valid
    [T, 1]: without WHOLE the others repeat a token, which changes neither its maximum nor its minimum."""
    if MEAN >= 0:
        total += x if WHOLE else tl.where(valid, x, 0.0)
    if MAX >= 0:
        top = tl.maximum(top, x, propagate_nan=tl.PropagateNan.ALL)
    if MIN >= 0:
        low = tl.minimum(low, x, propagate_nan=tl.PropagateNan.ALL)
    return total, top, low


@triton.jit
def _store(at, total, top, low, inside, step, tokens, undo, MEAN: tl.constexpr, MAX: tl.constexpr, MIN: tl.constexpr):
    """Pool [H, T, elements] down to one of T, each way times undo to its place from `at` [H, elements] on; -1 marks a way that
    isn't asked for."""
    if MEAN >= 0:
        tl.store(at + MEAN * step, tl.sum(total, 1) / tokens * undo, mask=inside)
    # the hardware's max and min pass over NaN, PyTorch's don't
    if MAX >= 0:
        bad = tl.max((top != top).to(tl.int32), 1) > 0
        tl.store(at + MAX * step, tl.where(bad, float("nan"), tl.max(top, 1) * undo), mask=inside)
    if MIN >= 0:
        bad = tl.max((low != low).to(tl.int32), 1) > 0
        tl.store(at + MIN * step, tl.where(bad, float("nan"), tl.min(low, 1) * undo), mask=inside)


@triton.jit
def _turn_back(one, two, cos, sin):
    """Return both halves of tokens with RoPE undone, but for its scaling."""
    one = one.to(tl.float32)
    two = two.to(tl.float32)
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
    TEAM: tl.constexpr,
    SPLIT: tl.constexpr,
    TWO: tl.constexpr,
    MEAN: tl.constexpr,
    MAX: tl.constexpr,
    MIN: tl.constexpr,
):
    """Pool one block of TEAM heads of a row b of X, from h on, to their lines of Out: the part-th of SPLIT parts of their pairs
    of elements. TWO: and of the TEAM heads after them, all of whose elements rotate.

    Each of TEAM warps has a head of its own; they find each other's stretches of the tables in L1, and with TWO a warp reads
    them once for both its heads. RoPE's scaling is one number for a whole table, and positive: the block's first token tells
    it, and what was pooled is divided by its square.
    """
    PAIRS: tl.constexpr = PAD_HALF // SPLIT
    MASKED: tl.constexpr = PAD_HALF > HALF
    MASKED_REST: tl.constexpr = PAD_REST > D - 2 * HALF
    tokens = tl.minimum(length - block * BLOCK, BLOCK)
    whole = tokens // (2 * TURN) * (2 * TURN)  # tokens that need no mask
    p = tl.arange(0, TURN).to(tl.int64)[:, None]
    team = tl.arange(0, TEAM).to(tl.int64)
    offs_h = part * PAIRS + tl.arange(0, PAIRS)
    offs_r = tl.arange(0, PAD_REST)
    in_half = offs_h < HALF
    in_rest = offs_r < D - 2 * HALF
    half = in_half[None, None, :]
    rest = in_rest[None, None, :]
    first = (block * BLOCK).to(tl.int64)
    source = X + b * sxb + h * sxh + first * sxp
    cosines = Cos + first * scp
    sines = Sin + first * ssp
    total1 = tl.zeros([TEAM, TURN, PAIRS], tl.float32)
    top1 = tl.full([TEAM, TURN, PAIRS], -float("inf"), tl.float32)
    low1 = tl.full([TEAM, TURN, PAIRS], float("inf"), tl.float32)
    total2, top2, low2 = total1, top1, low1
    total4, top4, low4 = total1, top1, low1
    total5, top5, low5 = total1, top1, low1
    total3 = tl.zeros([TEAM, TURN, PAD_REST], tl.float32)
    top3 = tl.full([TEAM, TURN, PAD_REST], -float("inf"), tl.float32)
    low3 = tl.full([TEAM, TURN, PAD_REST], float("inf"), tl.float32)
    members = team[:, None, None] * sxh
    next_team = TEAM * sxh
    x_at = members + (p * sxp + offs_h[None, :])[None, :, :]
    alike = tl.zeros([TEAM, 1, 1], tl.int64)  # all warps read the same of the tables, in the order of their own heads
    cos_at = alike + (p * scp + offs_h[None, :])[None, :, :]
    sin_at = alike + (p * ssp + offs_h[None, :])[None, :, :]
    rest_at = members + (2 * HALF + p * sxp + offs_r[None, :])[None, :, :]
    valid = p < BLOCK
    # Two turns at once, all of whose loads come first: a warp waits for memory half as often
    for start in range(0, whole, 2 * TURN):
        at = tl.cast(start, tl.int64)
        then = at + TURN
        if HALF > 0:
            cos = _load(cosines + at * scp + cos_at, half, MASKED)
            sin = _load(sines + at * ssp + sin_at, half, MASKED)
            one = _load(source + at * sxp + x_at, half, MASKED)
            two = _load(source + at * sxp + x_at + HALF, half, MASKED)
            next_cos = _load(cosines + then * scp + cos_at, half, MASKED)
            next_sin = _load(sines + then * ssp + sin_at, half, MASKED)
            next_one = _load(source + then * sxp + x_at, half, MASKED)
            next_two = _load(source + then * sxp + x_at + HALF, half, MASKED)
            if TWO:
                other_one = _load(source + next_team + at * sxp + x_at, half, MASKED)
                other_two = _load(source + next_team + at * sxp + x_at + HALF, half, MASKED)
                last_one = _load(source + next_team + then * sxp + x_at, half, MASKED)
                last_two = _load(source + next_team + then * sxp + x_at + HALF, half, MASKED)
            one, two = _turn_back(one, two, cos, sin)
            total1, top1, low1 = _gather(one, valid, total1, top1, low1, True, MEAN, MAX, MIN)
            total2, top2, low2 = _gather(two, valid, total2, top2, low2, True, MEAN, MAX, MIN)
            one, two = _turn_back(next_one, next_two, next_cos, next_sin)
            total1, top1, low1 = _gather(one, valid, total1, top1, low1, True, MEAN, MAX, MIN)
            total2, top2, low2 = _gather(two, valid, total2, top2, low2, True, MEAN, MAX, MIN)
            if TWO:
                one, two = _turn_back(other_one, other_two, cos, sin)
                total4, top4, low4 = _gather(one, valid, total4, top4, low4, True, MEAN, MAX, MIN)
                total5, top5, low5 = _gather(two, valid, total5, top5, low5, True, MEAN, MAX, MIN)
                one, two = _turn_back(last_one, last_two, next_cos, next_sin)
                total4, top4, low4 = _gather(one, valid, total4, top4, low4, True, MEAN, MAX, MIN)
                total5, top5, low5 = _gather(two, valid, total5, top5, low5, True, MEAN, MAX, MIN)
        if D > 2 * HALF:
            x = _load(source + at * sxp + rest_at, rest, MASKED_REST)
            next_x = _load(source + then * sxp + rest_at, rest, MASKED_REST)
            total3, top3, low3 = _gather(x.to(tl.float32), valid, total3, top3, low3, True, MEAN, MAX, MIN)
            total3, top3, low3 = _gather(next_x.to(tl.float32), valid, total3, top3, low3, True, MEAN, MAX, MIN)
    for start in range(whole, tokens, TURN):
        valid = start + p < tokens
        at = tl.minimum(start + p, tokens - 1)
        x_at = members + (at * sxp + offs_h[None, :])[None, :, :]
        if HALF > 0:
            cos = _load(cosines + alike + (at * scp + offs_h[None, :])[None, :, :], half, MASKED)
            sin = _load(sines + alike + (at * ssp + offs_h[None, :])[None, :, :], half, MASKED)
            one = _load(source + x_at, half, MASKED)
            two = _load(source + x_at + HALF, half, MASKED)
            one, two = _turn_back(one, two, cos, sin)
            total1, top1, low1 = _gather(one, valid, total1, top1, low1, False, MEAN, MAX, MIN)
            total2, top2, low2 = _gather(two, valid, total2, top2, low2, False, MEAN, MAX, MIN)
            if TWO:
                one = _load(source + next_team + x_at, half, MASKED)
                two = _load(source + next_team + x_at + HALF, half, MASKED)
                one, two = _turn_back(one, two, cos, sin)
                total4, top4, low4 = _gather(one, valid, total4, top4, low4, False, MEAN, MAX, MIN)
                total5, top5, low5 = _gather(two, valid, total5, top5, low5, False, MEAN, MAX, MIN)
        if D > 2 * HALF:
            rest_at = members + (2 * HALF + at * sxp + offs_r[None, :])[None, :, :]
            x = _load(source + rest_at, rest, MASKED_REST).to(tl.float32)
            total3, top3, low3 = _gather(x, valid, total3, top3, low3, False, MEAN, MAX, MIN)
    line = Out + b * sob + (h + team)[:, None] * soh + block.to(tl.int64) * soi
    if HALF > 0:
        cos = tl.load(cosines + offs_h, mask=in_half, other=1.0)
        sin = tl.load(sines + offs_h, mask=in_half, other=0.0)
        undo = (1.0 / (cos * cos + sin * sin))[None, :]  # the scaling, squared: 1 where there is none
        out = line + offs_h[None, :]
        _store(out, total1, top1, low1, in_half[None, :], D, tokens, undo, MEAN, MAX, MIN)
        _store(out + HALF, total2, top2, low2, in_half[None, :], D, tokens, undo, MEAN, MAX, MIN)
        if TWO:
            _store(out + TEAM * soh, total4, top4, low4, in_half[None, :], D, tokens, undo, MEAN, MAX, MIN)
            _store(out + TEAM * soh + HALF, total5, top5, low5, in_half[None, :], D, tokens, undo, MEAN, MAX, MIN)
    if D > 2 * HALF:
        _store(line + 2 * HALF + offs_r[None, :], total3, top3, low3, in_rest[None, :], D, tokens, 1.0, MEAN, MAX, MIN)
