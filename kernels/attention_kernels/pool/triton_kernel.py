"""Block pooling in Triton: x is read once, whatever is pooled.

One warp pools one block of one head, a few tokens side by side, and nothing leaves its registers: many such warps on an SM
keep memory busy. Each reads RoPE's tables for itself, from L2, where the warps of the other heads of its block find them
too. In `_pool_pair` a warp takes two heads of queries with one reading of the tables, and its neighbour two more, with what the
first one brought to L1.
Measured on an H100 before that (32 heads of 128, 131,072 tokens): 0.41 ms for 1.07 GB, against 0.63 ms where a program pools
eight heads one after another.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from attention_kernels.decode.triton_kernel import can_overlap
from attention_kernels.rope import kernel_tables


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
        X,
        Cos,
        Sin,
        Out,
        *strides,
        b,
        h,
        block,
        length,
        0,
        D,
        HALF,
        PAD_HALF,
        PAD_REST,
        BLOCK,
        TURN,
        1,
        1,
        False,
        MEAN,
        MAX,
        MIN,
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
    TEAM: tl.constexpr,
    Q_SPLIT: tl.constexpr,
    K_SPLIT: tl.constexpr,
    Q_TWO: tl.constexpr,
    Q_MEAN: tl.constexpr,
    Q_MAX: tl.constexpr,
    Q_MIN: tl.constexpr,
    K_MEAN: tl.constexpr,
    K_MAX: tl.constexpr,
    K_MIN: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Pool a part of a block of TEAM heads of keys in each of the first `k_programs` programs, of queries in the others, there
    with Q_TWO of twice as many heads. Cos, Sin: of the keys. OVERLAP: the next launch may begin meanwhile."""
    if OVERLAP:
        tl.extra.cuda.gdc_launch_dependents()  # who reads the results may be put on the GPU now, and waits there
    me = tl.program_id(0)
    b = tl.program_id(1).to(tl.int64)
    if me < k_programs:  # pooled in more ways, they take longest: first
        own = me // K_SPLIT
        k_teams = k_heads // TEAM
        h = (own % k_teams).to(tl.int64) * TEAM
        strides = (skb, skh, skp, scp, ssp, spb, sph, spi)
        pool_block(
            K,
            Cos,
            Sin,
            OutK,
            *strides,
            b,
            h,
            own // k_teams,
            k_length,
            me % K_SPLIT,
            D,
            HALF,
            PAD_HALF,
            PAD_REST,
            BLOCK,
            TURN * K_SPLIT,
            TEAM,
            K_SPLIT,
            False,
            K_MEAN,
            K_MAX,
            K_MIN,
        )
    else:
        own = (me - k_programs) // Q_SPLIT
        HEADS: tl.constexpr = 2 * TEAM if Q_TWO else TEAM
        q_teams = q_heads // HEADS
        h = (own % q_teams).to(tl.int64) * HEADS
        ahead = (k_length - q_length).to(tl.int64)
        strides = (sqb, sqh, sqp, scp, ssp, sob, soh, soi)
        pool_block(
            Q,
            Cos + ahead * scp,
            Sin + ahead * ssp,
            OutQ,
            *strides,
            b,
            h,
            own // q_teams,
            q_length,
            (me - k_programs) % Q_SPLIT,
            D,
            HALF,
            PAD_HALF,
            PAD_REST,
            BLOCK,
            TURN * Q_SPLIT,
            TEAM,
            Q_SPLIT,
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


@dataclass(frozen=True)
class PairLaunch:
    """The shape of `_pool_pair`. team: heads of a program, one each warp; two: twice as many of queries; q_split, k_split:
    parts in which programs pool the elements of queries and keys; registers: of a thread at most."""

    team: int
    two: bool
    q_split: int
    k_split: int
    registers: int = 128


def pair_shape(q_blocks: int, heads: tuple[int, int], half: int, ways: int) -> PairLaunch:
    """Return the shape of a launch for `q_blocks` blocks of queries, all heads counted, of which 2 · half elements rotate (0
    where some don't), pooled in so many ways. heads: of queries and keys."""
    q_heads, k_heads = heads
    if half < 16:
        return PairLaunch(1, two=False, q_split=1, k_split=1)
    # Heads share what is read of the tables, twice what is read of one head: more than L2 brings where each reads its own.
    # Where warps are too few to keep memory busy (4k tokens), each takes half the elements, and so half as long
    two = ways == 1 and q_heads % 2 == 0
    even = k_heads % TEAM == 0 and q_heads % (TEAM * (2 if two else 1)) == 0
    team = TEAM if even else 1
    if q_blocks < WHOLE_FROM:
        return PairLaunch(team, two=two, q_split=2, k_split=2, registers=168)  # 12 warps an SM: all of 4k tokens, at once
    return PairLaunch(team, two=two, q_split=1, k_split=2)  # predicted: 16 warps an SM, all of 8k tokens, at once


TEAM = 2
"""Warps of a program of `_pool_pair`, where the heads allow it."""
WHOLE_FROM = 2048
"""Blocks of queries, all heads counted, from which on a warp pools all elements: 8k tokens of 32 heads, in blocks of 128."""


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
    whole = dim == 2 * half  # all elements rotate
    launch = pair_shape(q_blocks * q_heads * batch, (q_heads, k_heads), half if whole else 0, len(q_how))
    k_programs = k_blocks * (k_heads // launch.team) * launch.k_split
    q_programs = q_blocks * (q_heads // (launch.team * (2 if launch.two else 1))) * launch.q_split
    sizes = _widths(dim, half, q.is_cuda) | {"num_warps": launch.team}
    with torch.cuda.device_of(q):  # Triton launches on the current device
        _pool_pair[(k_programs + q_programs, batch)](
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
            k_programs,
            BLOCK=block,
            TEAM=launch.team,
            Q_SPLIT=launch.q_split,
            K_SPLIT=launch.k_split,
            Q_TWO=launch.two,
            Q_MEAN=q_places[0],
            Q_MAX=q_places[1],
            Q_MIN=q_places[2],
            K_MEAN=k_places[0],
            K_MAX=k_places[1],
            K_MIN=k_places[2],
            OVERLAP=can_overlap(q.device),
            maxnreg=launch.registers,
            **sizes,
        )
    return out_q, out_k
