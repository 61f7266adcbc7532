# mypy: disable-error-code="no-untyped-def"
"""The kernel that scores and selects in one launch; `triton_kernel.py` says how, and launches it."""

from __future__ import annotations

import triton
import triton.language as tl

from attention_kernels.selection.cut_kernel import select_rows


@triton.jit
def _queries(Q, Unit, low, head, m, stride, rows, D: tl.constexpr, PAD_D: tl.constexpr, SPLIT: tl.constexpr):
    """Load queries of the rows m [M]: high and low halves [M, D], unit [M]. Q: the head's first row; low: from there to its
    low halves. Without SPLIT all is in the first."""
    offs_d = tl.arange(0, PAD_D)
    inside = (m < rows)[:, None] & (offs_d < D)[None, :]
    at = Q + m[:, None] * stride + offs_d[None, :]
    high = tl.load(at, mask=inside, other=0.0)
    rest = high
    unit = tl.full(m.shape, 1.0, tl.float32)
    if SPLIT:
        rest = tl.load(at + low, mask=inside, other=0.0)
        unit = tl.load(Unit + head * rows + m, mask=m < rows, other=1.0)
    return high, rest, unit


@triton.jit
def _dot(q, q_rest, q_unit, K, Unit, low, head, n, stride, cols, D: tl.constexpr, PAD_D: tl.constexpr, SPLIT: tl.constexpr):
    """Return scores [M, N] of what `_queries` returned and the keys n [N], of which K, Unit, low and head say what Q's did."""
    offs_d = tl.arange(0, PAD_D)
    inside = (n < cols)[:, None] & (offs_d < D)[None, :]
    at = K + n[:, None] * stride + offs_d[None, :]
    k = tl.load(at, mask=inside, other=0.0)
    s = tl.dot(q, k.T)
    if SPLIT:
        rest = tl.dot(q_rest, k.T)
        rest = tl.dot(q, tl.load(at + low, mask=inside, other=0.0).T, rest)
        s += tl.where(rest == rest, rest, 0.0)  # NaN here only: an infinity times a low half of 0
        s = s * q_unit[:, None] * tl.load(Unit + head * cols + n, mask=n < cols, other=1.0)[None, :]
    return s


@triton.jit
def _select_tile(
    Line,
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
    scratch_width,
    Q_BLOCK: tl.constexpr,
    K_BLOCK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    R: tl.constexpr,
    W: tl.constexpr,
    RULE: tl.constexpr,
    CAPPED: tl.constexpr,
    AHEAD: tl.constexpr,
):
    """Select in the BLOCK_M rows whose scores are at Line, R at once. AHEAD: the next ones are on their way meanwhile."""
    FILL: tl.constexpr = 256 if W > 256 else W
    at = Line + tl.arange(0, R)[:, None] * scratch_width + tl.arange(0, W)[None, :]
    scores = tl.load(at)
    for r in range(0, tl.minimum(BLOCK_M, rows - first), R):
        coming = scores
        if AHEAD:
            coming = tl.load(at + tl.minimum(r + R, BLOCK_M - R) * scratch_width)
        guess, reach = select_rows(
            scores,
            Budget,
            Counts,
            Indices,
            first + r,
            rows,
            listed,
            q_len,
            k_len,
            level,
            width,
            guess,
            reach,
            Q_BLOCK,
            K_BLOCK,
            FILL,
            RULE,
            CAPPED,
        )
        if AHEAD:
            scores = coming
        else:
            scores = tl.load(at + tl.minimum(r + R, BLOCK_M - R) * scratch_width)
    return guess, reach


# What changes with a prompt's length or the sparsity is not specialised on: no compiling for each.
@triton.jit(
    do_not_specialize=["heads", "k_heads", "group", "tiles", "total", "rows", "listed", "cols", "q_len", "k_len", "width"]
)
def select_pooled_kernel(
    Q,
    K,
    QUnit,
    KUnit,
    Scratch,
    Budget,
    Counts,
    Indices,
    q_low,
    k_low,
    sqb,
    sqh,
    sqm,
    skb,
    skh,
    skn,
    heads,
    k_heads,
    group,
    tiles,
    total,
    rows,
    listed,
    cols,
    q_len,
    k_len,
    scale,
    level,
    width,
    Q_BLOCK: tl.constexpr,
    K_BLOCK: tl.constexpr,
    D: tl.constexpr,
    PAD_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    R: tl.constexpr,
    W: tl.constexpr,
    SHARE: tl.constexpr,
    MAX: tl.constexpr,
    RULE: tl.constexpr,
    CAPPED: tl.constexpr,
    AHEAD: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """Run one program: it takes tiles of BLOCK_M rows in turn, puts their scores in its line of Scratch and selects in them.

    q_low, k_low: elements from the high to the low halves (see `split_kernel`). scale: of the scores, a mean's share in it.
    listed: see `select_rows`. level: the threshold or the mass. R, W: rows selected in at once, and columns that they are held
    as, a power of two. SHARE: query heads with one index, whose scores are added, or with MAX compared."""
    me = tl.program_id(0)
    programs = tl.num_programs(0)
    line = Scratch + me.to(tl.int64) * BLOCK_M * W
    offs_m = tl.arange(0, BLOCK_M)
    offs_n = tl.arange(0, BLOCK_N)
    guess = 0.0
    reach = 1.0
    for turn in range(0, tl.cdiv(total, programs)):
        # back and forth, so that no program always gets the long rows
        tile = turn * programs + tl.where(turn % 2 == 0, me, programs - 1 - me)
        if tile < total:
            head = tile // tiles  # heads one after another: their keys stay in L2
            first = (tiles - 1 - tile % tiles) * BLOCK_M
            b = (head // heads).to(tl.int64)
            h = (head % heads).to(tl.int64) * SHARE
            last = tl.minimum(first + BLOCK_M, rows)
            causal = (tl.minimum(last * Q_BLOCK, q_len) - 1 + k_len - q_len) // K_BLOCK + 1
            m = first + offs_m
            q_base = Q + b * sqb
            k_base = K + b * skb
            if SHARE == 1:
                q, q_rest, q_unit = _queries(q_base + h * sqh, QUnit, q_low, b * heads + h, m, sqm, rows, D, PAD_D, SPLIT)
            for start in range(0, causal, BLOCK_N):
                n = start + offs_n
                if SHARE == 1:
                    hk = h // group
                    s = _dot(
                        q, q_rest, q_unit, k_base + hk * skh, KUnit, k_low, b * k_heads + hk, n, skn, cols, D, PAD_D, SPLIT
                    )
                else:
                    s = tl.full([BLOCK_M, BLOCK_N], -float("inf") if MAX else 0.0, tl.float32)
                    for g in range(h, h + SHARE):
                        hk = g // group
                        q, q_rest, q_unit = _queries(
                            q_base + g * sqh, QUnit, q_low, b * heads * SHARE + g, m, sqm, rows, D, PAD_D, SPLIT
                        )
                        one = _dot(
                            q,
                            q_rest,
                            q_unit,
                            k_base + hk * skh,
                            KUnit,
                            k_low,
                            b * k_heads + hk,
                            n,
                            skn,
                            cols,
                            D,
                            PAD_D,
                            SPLIT,
                        )
                        if MAX:
                            s = tl.maximum(s, one * scale, propagate_nan=tl.PropagateNan.ALL)
                        else:
                            s += one
                if SHARE == 1 or not MAX:
                    s = s * scale  # a mean's share is in it
                tl.store(line + offs_m[:, None] * W + n[None, :], s)
            tl.debug_barrier()  # all scores are written before any row is read
            place = head.to(tl.int64) * rows
            if W >= 512 and causal <= W // 2:
                SHORT: tl.constexpr = 2 * R if 2 * R < BLOCK_M else BLOCK_M
                guess, reach = _select_tile(
                    line,
                    Budget,
                    Counts + place,
                    Indices + place * width,
                    first,
                    rows,
                    listed,
                    q_len,
                    k_len,
                    level,
                    width,
                    guess,
                    reach,
                    W,
                    Q_BLOCK,
                    K_BLOCK,
                    BLOCK_M,
                    SHORT,
                    W // 2,
                    RULE,
                    CAPPED,
                    AHEAD,
                )
            else:
                guess, reach = _select_tile(
                    line,
                    Budget,
                    Counts + place,
                    Indices + place * width,
                    first,
                    rows,
                    listed,
                    q_len,
                    k_len,
                    level,
                    width,
                    guess,
                    reach,
                    W,
                    Q_BLOCK,
                    K_BLOCK,
                    BLOCK_M,
                    R,
                    W,
                    RULE,
                    CAPPED,
                    AHEAD,
                )
            tl.debug_barrier()  # all rows are read before the next tile's scores are written
