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

from attention_kernels.pool.block_kernel import pool_block
from attention_kernels.rope import kernel_tables


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
    pool_block(
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
):
    """Pool a part of a block of TEAM heads of keys in each of the first `k_programs` programs, of queries in the others, there
    with Q_TWO of twice as many heads. Cos, Sin: of the keys."""
    # The launch that follows may not begin meanwhile: its programs took the place of these, 4 µs at 4k tokens and 9 at 8k
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
            maxnreg=launch.registers,
            **sizes,
        )
    return out_q, out_k
