# mypy: disable-error-code="no-untyped-def"
"""Choosing in whole rows of scores that a program holds in registers, in Triton.

The cut between kept and left is found by counting: how many scores are at least x? x is guessed between a value with too
many and one with too few, by interpolation and halving in turn, then by halving the order-preserving integers of the floats,
which ends after 32 more turns whatever the scores. A running sum over the row then places the kept columns in ascending
order.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOWEST = tl.constexpr(-(2**31))
"""Below the key of every score: blocks that can't be chosen."""
GUESSES = tl.constexpr(16)
"""Turns of interpolation before halving integers."""
TOPK = tl.constexpr(0)
THRESHOLD = tl.constexpr(1)
MASS = tl.constexpr(2)


@triton.jit
def _key(x):
    """float32 -> int32 that orders the same. Negative zero counts as zero."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    return tl.where(bits >= 0, bits, bits ^ 0x7FFFFFFF)


@triton.jit
def _value(key):
    """The inverse of _key."""
    return tl.where(key >= 0, key, key ^ 0x7FFFFFFF).to(tl.float32, bitcast=True)


@triton.jit
def _cut(key, weight, wanted, free, RULE: tl.constexpr):
    """Where to cut each row of keys [R, W], blocks that can't be chosen being LOWEST: low, high, kept, room, each [R].

    Keys of at least `high` are kept, `kept` of them; of those from `low` up to `high`, the first `room` are kept too.
    Kept are the `wanted` best (top-k), or the fewest whose `weight` reaches `wanted` (mass). free: blocks to choose from.
    """
    low = tl.min(tl.where(key == LOWEST, 0x7FFFFFFF, key), 1).to(tl.int64)
    high = tl.max(key, 1).to(tl.int64) + 1
    n_low = free  # blocks of at least low, and of at least high
    n_high = tl.zeros_like(free)
    if RULE == MASS:
        w_low = tl.sum(weight, 1)
        w_high = tl.zeros_like(w_low)
        some = wanted > 0.0  # False for NaN
        active = some & (n_low > 1) & (high - low > 1) & (w_low > wanted)
    else:
        some = wanted > 0
        active = some & (n_low > wanted) & (high - low > 1)
    turn = 0
    while tl.max(active.to(tl.int32), 0) > 0:
        v_low = _value(low.to(tl.int32))
        v_high = _value(high.to(tl.int32))
        if RULE == MASS:
            share = (w_low - wanted) / (w_low - w_high)
        else:
            share = (n_low - wanted).to(tl.float32) / tl.maximum(n_low - n_high, 1).to(tl.float32)
        guess = v_low + (v_high - v_low) * tl.where(turn % 2 == 0, share, 0.5)
        probe = tl.where(turn < GUESSES, _key(guess).to(tl.int64), (low + high) >> 1)
        probe = tl.maximum(tl.minimum(probe, high - 1), low + 1)
        above = key >= probe.to(tl.int32)[:, None]
        n = tl.sum(above.to(tl.int32), 1)
        if RULE == MASS:
            w = tl.sum(tl.where(above, weight, 0.0), 1)
            enough = active & (w >= wanted)
        else:
            enough = active & (n >= wanted)
        short = active & (enough == 0)
        low = tl.where(enough, probe, low)
        high = tl.where(short, probe, high)
        n_low = tl.where(enough, n, n_low)
        n_high = tl.where(short, n, n_high)
        if RULE == MASS:
            w_low = tl.where(enough, w, w_low)
            w_high = tl.where(short, w, w_high)
            active = active & (n_low - n_high > 1) & (high - low > 1)
        else:
            active = active & (n_low > wanted) & (high - low > 1)
        turn += 1
    between = n_low - n_high
    if RULE == MASS:
        # more than one between means equal ones, or that all are needed: as many as fill what is missing
        each = tl.sum(tl.where((key >= low.to(tl.int32)[:, None]) & (key < high.to(tl.int32)[:, None]), weight, 0.0), 1)
        each = each / tl.maximum(between, 1).to(tl.float32)
        missing = tl.ceil((wanted - w_high) / each)
        room = tl.where(missing < between.to(tl.float32), tl.maximum(missing, 1.0).to(tl.int32), between)
        room = tl.where(high - low > 1, between, room)
    else:
        room = wanted - n_high
    return low.to(tl.int32), high.to(tl.int32), n_high, tl.where(some, room, 0)


@triton.jit
def select_rows(
    Line, Budget, Counts, Indices, first, rows, q_len, k_len, level, width, scratch_width,
    Q_BLOCK: tl.constexpr, K_BLOCK: tl.constexpr, R: tl.constexpr, W: tl.constexpr,
    RULE: tl.constexpr, CAPPED: tl.constexpr,
):  # fmt: skip
    """Select in R rows from `first` on, whose scores [R, W] are at Line; Counts and Indices are those of the head.

    level: the threshold or mass. CAPPED: the index may be too narrow for what they keep.
    """
    row = first + tl.arange(0, R)
    inside = row < rows
    offset = k_len - q_len
    causal = (tl.minimum((row + 1) * Q_BLOCK, q_len) - 1 + offset) // K_BLOCK + 1
    causal = tl.where(inside, causal, 0)
    own = tl.minimum((row * Q_BLOCK + offset) // K_BLOCK, causal)  # columns from here on are the diagonal
    cols = tl.arange(0, W)
    scores = tl.load(Line + tl.arange(0, R)[:, None] * scratch_width + cols[None, :])
    free = cols[None, :] < own[:, None]
    seen = cols[None, :] < causal[:, None]
    diagonal = seen & (cols[None, :] >= own[:, None])
    forced = causal - own
    clean = tl.where(scores != scores, -3e38, scores)
    clean = tl.where(clean == float("inf"), 3e38, tl.where(clean == -float("inf"), -3e38, clean))
    key = tl.where(free, _key(clean), LOWEST)
    if RULE == TOPK:
        wanted = tl.load(Budget + row, mask=inside, other=0) - forced
        low, high, kept, room = _cut(key, scores, wanted, own, TOPK)
    else:
        # a NaN anywhere makes the whole softmax NaN, and no comparison with it is true
        scores = tl.where(seen, scores, -float("inf"))
        top = tl.max(scores, 1)
        weight = tl.where(seen, tl.exp(scores - top[:, None]), 0.0)
        total = tl.sum(weight, 1)
        if RULE == THRESHOLD:
            above = free & (weight / total[:, None] > level)
            count = tl.sum(above.to(tl.int32), 1)
            if CAPPED:
                wanted = tl.minimum(count, width - forced)
                low, high, kept, room = _cut(key, weight, wanted, own, TOPK)
        else:
            wanted = level * total - tl.sum(tl.where(diagonal, weight, 0.0), 1)
            low, high, kept, room = _cut(key, tl.where(free, weight, 0.0), wanted, own, MASS)
            if CAPPED:
                wanted = tl.minimum(kept + room, width - forced)
                low, high, kept, room = _cut(key, weight, wanted, own, TOPK)
    if RULE == THRESHOLD and not CAPPED:
        sure = above | diagonal
        before = tl.cumsum(sure.to(tl.int32), 1) - sure.to(tl.int32)
        chosen = sure
        kept = count
        room = tl.zeros_like(count)
    else:
        sure = (key >= high[:, None]) & free | diagonal
        equal = (key >= low[:, None]) & (key < high[:, None]) & free
        both = sure.to(tl.int32) + (equal.to(tl.int32) << 16)
        both = tl.cumsum(both, 1) - both
        equal_before = (both >> 16) & 0xFFFF
        before = (both & 0xFFFF) + tl.minimum(equal_before, room[:, None])
        chosen = sure | (equal & (equal_before < room[:, None]))
    count = forced + kept + room
    tl.store(Counts + row, count, mask=inside)
    out = Indices + row.to(tl.int64)[:, None] * width
    tl.store(out + before, tl.broadcast_to(cols[None, :], (R, W)), mask=chosen & inside[:, None])
    for start in range(0, width, W):
        place = start + cols
        empty = (place[None, :] >= count[:, None]) & (place < width)[None, :] & inside[:, None]
        tl.store(out + place[None, :], tl.zeros([R, W], tl.int32), mask=empty)
