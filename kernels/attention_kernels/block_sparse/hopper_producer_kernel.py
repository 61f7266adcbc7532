# mypy: disable-error-code="no-untyped-def"
"""The first half of the kernel for Hopper: which tiles a program takes, and the warp that loads their
queries, keys and values.

A line is a query block that has a list, or one of the `splits` parts of a full one: the first `listed` lines are the former.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma


@gluon.jit
def program_turns(tiles):
    """Return how many tiles this program takes."""
    me = gl.program_id(0)
    programs = gl.num_programs(0)
    even_share = tiles // programs
    return even_share + (gl.where(even_share % 2 == 0, me, programs - 1 - me) < tiles % programs).to(gl.int32)


@gluon.jit
def tile_at(turn, lines, units, heads_kv, bundle, PACK: gl.constexpr):
    """Turn of this program -> batch, KV head, first query head, line. Programs take tiles in turns, back and forth, so
    that none always gets the longer rows. The query heads of `bundle` KV heads run side by side, so that their keys stay in
    L2, and of each bundle the longest rows come first."""
    me = gl.program_id(0)
    programs = gl.num_programs(0)
    t = turn * programs + gl.where(turn % 2 == 0, me, programs - 1 - me)
    unit = t % units
    pair = t // units
    head = pair % bundle
    pair = pair // bundle
    line = lines - 1 - pair % lines
    head += pair // lines * bundle
    kv = head % heads_kv
    return head // heads_kv, kv, kv * units * PACK + unit * PACK, line


@gluon.jit
def part_at(line, listed, splits):
    """Line -> query block, whether it is a full one, and which part of it the line is."""
    past = gl.maximum(line - listed, 0)
    full = line >= listed
    return gl.where(full, listed + past // splits, line), full, past % splits


@gluon.jit
def row_list(
    Counts,
    Indices,
    Every,
    scb,
    sch,
    sib,
    sih,
    sim,
    b,
    h,
    row,
    full,
    part,
    splits,
    PER_STEP: gl.constexpr,
    FULL: gl.constexpr,
):
    """Return the list of a row and its length, the steps it takes, and how many of its blocks the first step has: it is walked
    from its end, where the diagonal is. Every: the block numbers 0, 1, 2, …: the list of a full row is a part of it."""
    count = gl.load(Counts + b.to(gl.int64) * scb + h.to(gl.int64) * sch + row)
    lists = Indices + b.to(gl.int64) * sib + h.to(gl.int64) * sih + row.to(gl.int64) * sim
    if FULL:
        begin = gl.where(full, count * part // splits, 0)
        count = gl.where(full, count * (part + 1) // splits, count) - begin
        if full:
            lists = Every + begin
    steps = (count + PER_STEP - 1) // PER_STEP
    return lists, count, steps, count - (steps - 1) * PER_STEP


@gluon.jit
def _gather(
    desc,
    ring,
    full,
    empty,
    at,
    b,
    kv,
    lists,
    base,
    count,
    KB: gl.constexpr,
    N: gl.constexpr,
    D: gl.constexpr,
    SLOTS: gl.constexpr,
):
    """Load number `at` of the ring: the N keys (or values) of one step, a TMA copy for each block and 64 elements."""
    PER_STEP: gl.constexpr = N // KB
    CHUNKS: gl.constexpr = D // 64
    slot = at % SLOTS
    mbarrier.wait(empty.index(slot), ((at // SLOTS) & 1) ^ 1)
    mbarrier.expect(full.index(slot), N * D * 2)
    for p in gl.static_range(PER_STEP):
        entry = gl.minimum(base + p, count - 1)  # past the list: the last block once more, masked by the consumers
        start = gl.load(lists + entry) * KB
        for c in gl.static_range(CHUNKS):
            tma.async_copy_global_to_shared(
                desc, [b, kv, start, c * 64], full.index(slot), ring.index((slot * CHUNKS + c) * PER_STEP + p)
            )


@gluon.jit
def _load_queries(desc, tiles, bar, b, h, row, FIRST: gl.constexpr, QB: gl.constexpr, D: gl.constexpr):
    """Load the 64 rows of a tile from FIRST on, 64 elements at a time."""
    QR: gl.constexpr = QB if QB < 64 else 64  # query rows of one copy
    for part in gl.static_range(64 // QR):
        for c in gl.static_range(D // 64):
            tma.async_copy_global_to_shared(
                desc,
                [b, h + (FIRST + part * QR) // QB, row * QB + (FIRST + part * QR) % QB, c * 64],
                bar,
                tiles.index(c * (64 // QR) + part),
            )


@gluon.jit
def produce(
    qd,
    kd,
    vd,
    q0,
    q1,
    ring,
    q_full,
    q_empty,
    full,
    empty,
    Counts,
    Indices,
    Every,
    scb,
    sch,
    sib,
    sih,
    sim,
    tiles,
    lines,
    listed,
    splits,
    units,
    heads_kv,
    bundle,
    QB: gl.constexpr,
    KB: gl.constexpr,
    N: gl.constexpr,
    D: gl.constexpr,
    SLOTS: gl.constexpr,
    PACK: gl.constexpr,
    SHARED: gl.constexpr,
    FULL: gl.constexpr,
):
    """Run the producer warp: it loads the queries of every tile, then keys and values of its steps, as far ahead as the ring
    has slots.

    In the order in which they are used up: K0, K1, V0, K2, V1, …, so that one ring serves both.
    """
    PER_STEP: gl.constexpr = N // KB
    at = 0
    q_phase = 0
    for turn in range(program_turns(tiles)):
        b, kv, h, line = tile_at(turn, lines, units, heads_kv, bundle, PACK)
        row, full_row, part = part_at(line, listed, splits)
        hi = kv if SHARED else h
        lists, count, steps, first = row_list(
            Counts, Indices, Every, scb, sch, sib, sih, sim, b, hi, row, full_row, part, splits, PER_STEP, FULL
        )
        mbarrier.wait(q_empty, q_phase ^ 1)
        mbarrier.expect(q_full, 128 * D * 2)
        _load_queries(qd, q0, q_full, b, h, row, 0, QB, D)
        _load_queries(qd, q1, q_full, b, h, row, 64, QB, D)
        base = count - first
        _gather(kd, ring, full, empty, at, b, kv, lists, base, count, KB, N, D, SLOTS)
        at += 1
        for _ in range(1, steps):
            _gather(kd, ring, full, empty, at, b, kv, lists, base - PER_STEP, count, KB, N, D, SLOTS)
            _gather(vd, ring, full, empty, at + 1, b, kv, lists, base, count, KB, N, D, SLOTS)
            base -= PER_STEP
            at += 2
        _gather(vd, ring, full, empty, at, b, kv, lists, base, count, KB, N, D, SLOTS)
        at += 1
        q_phase ^= 1
