# mypy: disable-error-code="no-untyped-def"
"""Choosing in whole rows of scores that a program holds in registers, in Triton.

The cut between kept and left is found by counting: how many scores are at least x? The first x is the last row's cut, as
neighbours are alike; the next ones come from interpolating the logarithm of the count, and where that doesn't end, from
halving the order-preserving integers of the floats, which ends after 32 turns whatever the scores. Short rows are sorted in
place of that. A running sum over the row
then places the kept columns in ascending order.
"""

from __future__ import annotations

import triton
import triton.language as tl

LEAST = tl.constexpr(-3e38)
"""What NaN and minus infinity count as; blocks that can't be chosen are minus infinity, below it."""
GUESSES = tl.constexpr(20)
"""Turns of interpolation before halving integers."""
SORTED = tl.constexpr(128)
"""Rows of at most as many columns are sorted for their top-k: counting waits for other threads once a turn."""
TOPK = tl.constexpr(0)
THRESHOLD = tl.constexpr(1)
MASS = tl.constexpr(2)


@triton.jit
def _key(x):
    """Turn float32 into int32 that orders the same."""
    bits = x.to(tl.int32, bitcast=True)
    return tl.where(bits >= 0, bits, bits ^ 0x7FFFFFFF)


@triton.jit
def _value(key):
    """Return the inverse of _key."""
    return tl.where(key >= 0, key, key ^ 0x7FFFFFFF).to(tl.float32, bitcast=True)


@triton.jit
def _under(score, x):
    """Return 1 where score [R, W] is under x [R], else 0: the sign bit of the difference, as comparing takes more instructions.
    So neither may be NaN, score and x not both infinite, and score not -0.0."""
    return ((score - x[:, None]).to(tl.uint32, bitcast=True) >> 31).to(tl.int32)


@triton.jit
def _cut(score, weight, target, free, guess, reach, RULE: tl.constexpr):
    """Find where to cut each row of scores [R, W]: its score without those that aren't kept, the cut [R], kept [R], guess,
    reach.

    Kept, and at least the cut, are the `target` best (top-k, which reads no weight), or the fewest whose `weight` reaches
    `target` (mass); of equal ones the first. free [R]: blocks to choose from, all others being minus infinity. guess, reach:
    where to look first, and how far to go from there for twice or half as many; returned for the next row.
    """
    low = tl.full(free.shape, -2139095039, tl.int32)  # keys below and above all scores, which lie within 3e38
    high = tl.full(free.shape, 2139095039, tl.int32)
    n_low = free  # blocks of at least low, and of at least high
    n_high = tl.zeros_like(free)
    nonempty = target > 0  # False for NaN
    if RULE == MASS:
        w_low = tl.sum(weight, 1)
        w_high = tl.zeros_like(w_low)
        target = tl.minimum(target, w_low)  # a mass of one: no more than there is, whatever the rounding
        active = nonempty & (n_low > 1)
    else:
        w_low = n_low.to(tl.float32)
        w_high = tl.zeros_like(w_low)
        active = nonempty & (n_low > target)
    goal = tl.log2(tl.maximum(target.to(tl.float32), 1e-30))
    over = tl.zeros_like(w_low)  # doublings that low has too many
    under = tl.zeros_like(w_low)  # that high has too few, negative
    x = tl.full(free.shape, 0.0, tl.float32) + guess
    step = tl.zeros_like(x) + reach
    both = nonempty & (free < 0)  # whether low and high have both been counted
    turn = 0
    while tl.max(active.to(tl.int32), 0) > 0:
        middle = (low >> 1) + (high >> 1) + (low & high & 1)
        probe = tl.where(turn < GUESSES, _key(x), middle)
        probe = tl.maximum(tl.minimum(probe, high - 1), low + 1)
        at = _value(probe) + 0.0
        n = score.shape[1] - tl.sum(_under(score, at), 1)
        if RULE == MASS:
            w = tl.sum(tl.where(score >= at[:, None], weight, 0.0), 1)
        else:
            w = n.to(tl.float32)
        enough = active & (w >= target)
        short = active & (w < target)
        far = tl.log2(tl.maximum(w, 0.5 if RULE != MASS else 1e-30)) - goal
        low = tl.where(enough, probe, low)
        n_low = tl.where(enough, n, n_low)
        w_low = tl.where(enough, w, w_low)
        over = tl.where(enough, far, over)
        high = tl.where(short, probe, high)
        n_high = tl.where(short, n, n_high)
        w_high = tl.where(short, w, w_high)
        under = tl.where(short, far, under)
        both = both | (active & (low > -2139095039) & (high < 2139095039))
        v_low = _value(low)
        span = (_value(high) - v_low) / (over - under)
        x = tl.where(both, v_low + span * over, at + 1.25 * step * far)
        step = tl.where(both, span, 1.5 * step)
        if RULE == MASS:
            active = active & (n_low - n_high > 1) & (low < high - 1)
        else:
            active = active & (n_low > target) & (low < high - 1)
        turn += 1
    cut = tl.where(nonempty, _value(low), float("inf"))  # no score is infinite
    span = tl.max(tl.where(both & (low < high - 1) & (step < 1e30), step, 0.0), 0)  # equal scores tell nothing of a spread
    reach = tl.where(span > 0.0, span, reach)
    latest = tl.max(tl.where(nonempty & (low > -2139095039), cut, LEAST), 0)
    guess = tl.where(latest > LEAST, latest, guess)
    n_kept = n_low
    if RULE == MASS:
        # more than one between means equal ones, or that all are needed: as many as fill what is missing
        between = n_low - n_high
        unit = (w_low - w_high) / tl.maximum(between, 1).to(tl.float32)
        missing = tl.ceil((target - w_high) / unit)
        room = tl.where(missing < between.to(tl.float32), tl.maximum(missing, 1.0).to(tl.int32), between)
        n_kept = n_high + tl.where(low < high - 1, between, room)
    else:
        n_kept = tl.minimum(n_low, target)
    n_kept = tl.where(nonempty, n_kept, 0)
    if tl.max((nonempty & (n_kept < n_low)).to(tl.int32), 0) > 0:
        score = _first_of_equal(score, cut, n_kept - n_high)
    return score, cut, n_kept, guess, reach


@triton.jit
def _sorted_cut(score, target, free, BEST: tl.constexpr):
    """Do what `_cut` does for top-k, with short rows sorted in place of counted: its score, cut and kept. BEST: no target is
    larger, a power of two; only so many are sorted to the end."""
    n_kept = tl.maximum(tl.minimum(target, free), 0)
    if score.shape[1] > BEST:
        place = tl.arange(0, BEST)[None, :]
        best = tl.topk(score, BEST, 1)
    else:
        place = tl.arange(0, score.shape[1])[None, :]
        best = tl.sort(score, 1, descending=True)
    cut = tl.sum(tl.where(place == n_kept[:, None] - 1, best, 0.0), 1)
    cut = tl.where(n_kept > 0, cut, float("inf"))  # no score is infinite
    n_low = score.shape[1] - tl.sum(_under(score, cut), 1)
    if tl.max((n_low > n_kept).to(tl.int32), 0) > 0:
        n_high = tl.sum((score > cut[:, None]).to(tl.int32), 1)
        score = _first_of_equal(score, cut, tl.where(n_kept > 0, n_kept - n_high, 1))
    return score, cut, n_kept


@triton.jit
def _first_of_equal(score, cut, room):
    """Return score [R, W] with all but the first `room` [R] of those that equal the cut [R] set to minus infinity."""
    cols = tl.arange(0, score.shape[1])[None, :]
    equal = score == cut[:, None]
    start = tl.zeros_like(room)  # fewer than room lie before start; before end there are enough
    end = tl.full(room.shape, score.shape[1], tl.int32)
    while tl.max(end - start, 0) > 1:
        middle = (start + end) // 2
        n = tl.sum((equal & (cols < middle[:, None])).to(tl.int32), 1)
        end = tl.where(n >= room, middle, end)
        start = tl.where(n >= room, start, middle)
    return tl.where(equal & (cols >= end[:, None]), -float("inf"), score)


@triton.jit
def select_rows(
    scores,
    Budget,
    Counts,
    Indices,
    first,
    rows,
    listed,
    q_len,
    k_len,
    level,
    width,
    guess,
    reach,
    Q_BLOCK: tl.constexpr,
    K_BLOCK: tl.constexpr,
    FILL: tl.constexpr,
    RULE: tl.constexpr,
    CAPPED: tl.constexpr,
    BEST: tl.constexpr = SORTED,
):
    """Select in R rows from `first` on, whose scores are [R, W], anything beyond their causal columns. Counts and Indices are
    those of the head. Returns guess and reach (see `_cut`) for the next rows.

    listed: rows from this one on keep every causal block, and have no list. level: the threshold or mass. CAPPED: the index may
    be too narrow for what they keep. FILL: zeros to write at once. BEST: no budget of a row is
    larger, a power of two; read where rows are sorted.
    """
    R: tl.constexpr = scores.shape[0]
    W: tl.constexpr = scores.shape[1]
    row = first + tl.arange(0, R)
    inside = row < rows
    offset = k_len - q_len
    causal = (tl.minimum((row + 1) * Q_BLOCK, q_len) - 1 + offset) // K_BLOCK + 1
    causal = tl.where(inside, causal, 0)
    own = tl.minimum((row * Q_BLOCK + offset) // K_BLOCK, causal)  # columns from here on are the diagonal, always kept
    forced = causal - own
    own = tl.where(row < listed, own, 0)  # of a full row nothing is chosen
    cols = tl.arange(0, W)[None, :]
    free = cols < own[:, None]
    clean = tl.minimum(tl.where(scores > LEAST, scores, LEAST), -LEAST)  # NaN is above nothing
    score = tl.where(free, clean + 0.0, -float("inf"))  # adding zero makes -0.0 zero
    if RULE == TOPK:
        target = tl.load(Budget + row, mask=inside, other=0) - forced
        if W <= SORTED:
            score, cut, n_kept = _sorted_cut(score, target, own, BEST)
        else:
            score, cut, n_kept, guess, reach = _cut(score, score, target, own, guess, reach, TOPK)
    else:
        # a NaN anywhere makes the whole softmax NaN, and no comparison with it is true
        scores = tl.where(cols < causal[:, None], scores, -float("inf"))
        weight = tl.exp(scores - tl.max(scores, 1)[:, None])
        weight = tl.where(cols < causal[:, None], weight, 0.0)
        total = tl.sum(weight, 1)
        if RULE == THRESHOLD:
            above = free & (weight / total[:, None] > level)
            n_kept = tl.sum(above.to(tl.int32), 1)
            if CAPPED:
                n_kept = tl.minimum(n_kept, width - forced)
                score, cut, n_kept, guess, reach = _cut(score, weight, n_kept, own, guess, reach, TOPK)
            else:
                score = tl.where(above, 0.0, -float("inf"))
                cut = tl.zeros_like(total)
        else:
            chosen = tl.where(free, weight, 0.0)
            target = level * total - tl.sum(weight - chosen, 1)
            score, cut, n_kept, guess, reach = _cut(score, chosen, target, own, guess, reach, MASS)
            if CAPPED:
                n_kept = tl.minimum(n_kept, width - forced)
                score, cut, n_kept, guess, reach = _cut(score, weight, n_kept, own, guess, reach, TOPK)
    # Four neighbours are one thread's: counted together, the running sum has a fourth of the steps between threads
    even, odd = tl.split(tl.reshape(1 - _under(score, cut), [R, W // 4, 2, 2]))
    one, three = tl.split(even)
    two, four = tl.split(odd)
    place = tl.cumsum(one + two + three + four, 1)
    out = Indices + row.to(tl.int64)[:, None] * width
    line = tl.broadcast_to(4 * tl.arange(0, W // 4)[None, :], (R, W // 4))
    place -= four
    tl.store(out + place, line + 3, mask=four > 0)
    place -= three
    tl.store(out + place, line + 2, mask=three > 0)
    place -= two
    tl.store(out + place, line + 1, mask=two > 0)
    place -= one
    tl.store(out + place, line, mask=one > 0)
    DIAGONAL: tl.constexpr = triton.next_power_of_2((Q_BLOCK + K_BLOCK - 1) // K_BLOCK + 1)
    last = tl.arange(0, DIAGONAL)[None, :]
    tl.store(out + n_kept[:, None] + last, own[:, None] + last, mask=last < forced[:, None])
    count = n_kept + forced
    tl.store(Counts + row, tl.where(row < listed, count, causal), mask=inside)
    tail = tl.arange(0, FILL)[None, :]
    for start in range(tl.min(tl.where(inside, count, width), 0) // FILL * FILL, width, FILL):
        empty = (start + tail >= count[:, None]) & (start + tail < width) & inside[:, None]
        tl.store(out + start + tail, tl.zeros([R, FILL], tl.int32), mask=empty)
    return guess, reach
