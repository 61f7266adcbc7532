"""Block-sparse attention for Hopper (sm_90) in Gluon: a producer warp gathers the listed key blocks with TMA, two warpgroups
multiply with wgmma.

One tile is 128 query rows: a query block of 128, or the blocks of several query heads that share one index. One step is
`N` keys, gathered from as many listed blocks as fill them, so that fine blocks run on the same matrix instructions as
coarse ones. The product Q·K of the next step and P·V of the last run while the softmax of the step between is computed
(FlashAttention-3, arXiv 2407.08608, section 3.2). Programs are persistent: while the consumers finish a tile, the producer
already loads the next one's queries and keys.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from attention_kernels.block_sparse.hopper_producer_kernel import part_at, produce, program_turns, row_list, tile_at

ROWS = 128
"""Query rows of a tile, 64 for each consumer warpgroup."""


@gluon.jit
def _mask(s, lists, base, count, position, KB: gl.constexpr, N: gl.constexpr, S: gl.constexpr):
    """Return the scores s with -inf where a key lies in the future of its query, or past the end of the list."""
    col = gl.arange(0, N, layout=gl.SliceLayout(0, S))
    entry = base + col // KB
    block = gl.load(lists + gl.minimum(entry, count - 1))
    key = gl.where(entry < count, block * KB + col % KB, 1 << 30)
    return gl.where(key[None, :] <= position[:, None], s, float("-inf"))


@gluon.jit
def _write(desc, tiles, b, h, row, W: gl.constexpr, QB: gl.constexpr, D: gl.constexpr):
    """Start to copy the 64 rows of a consumer to query block `row` of an output, 64 elements at a time."""
    QR: gl.constexpr = QB if QB < 64 else 64
    for part in gl.static_range(64 // QR):
        for c in gl.static_range(D // 64):
            tma.async_copy_shared_to_global(
                desc,
                [b, h + (64 * W + part * QR) // QB, row * QB + (64 * W + part * QR) % QB, c * 64],
                tiles.index(c * (64 // QR) + part),
            )


@gluon.jit
def _consume(
    od,
    pd,
    q_tiles,
    o_tiles,
    ring,
    q_full,
    q_empty,
    full,
    empty,
    Counts,
    Indices,
    Every,
    Sizes,
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
    offset,
    scale,
    W: gl.constexpr,
    QB: gl.constexpr,
    KB: gl.constexpr,
    N: gl.constexpr,
    D: gl.constexpr,
    SLOTS: gl.constexpr,
    PACK: gl.constexpr,
    SHARED: gl.constexpr,
    FULL: gl.constexpr,
    SPLIT: gl.constexpr,
    Q_IN_REGISTERS: gl.constexpr,
    OWN_OUT: gl.constexpr,
):
    """Run one consumer warpgroup: rows 64·W to 64·W + 63 of every tile.

    SPLIT: full rows are in several parts. What a part computes goes to `pd` as query blocks of its own, and the log2 of its
    softmax's denominator to Sizes [B, Hq, parts, QB], minus infinity where a query sees none of its keys: the output of such a
    query is NaN.
    """
    S: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, N, 16])
    OUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    P: gl.constexpr = gl.DotOperandLayout(0, OUT, 2)
    SHAPE: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
    PER_STEP: gl.constexpr = N // KB
    dtype: gl.constexpr = q_tiles.dtype
    slots = ring._reinterpret(dtype, [SLOTS, N, D], SHAPE)
    q_view = q_tiles._reinterpret(dtype, [64, D], SHAPE)
    o_view = o_tiles._reinterpret(dtype, [64, D], SHAPE)
    rr = 64 * W + gl.arange(0, 64, layout=gl.SliceLayout(1, S))
    at = 0
    q_phase = 0
    for turn in range(program_turns(tiles)):
        b, kv, h, line = tile_at(turn, lines, units, heads_kv, bundle, PACK)
        row, full_row, part = part_at(line, listed, splits)
        hi = kv if SHARED else h
        lists, count, steps, first = row_list(
            Counts, Indices, Every, scb, sch, sib, sih, sim, b, hi, row, full_row, part, splits, PER_STEP, FULL
        )
        start = row * QB + offset  # position of the first query
        position = start + rr % QB
        # blocks that reach into some query's future: those over the query block's own tokens, all of them listed, at the end
        # (and at the end of a part, if any of its are)
        diagonal = (start + QB - 1) // KB + 1 - start // KB
        masked = 1 + (gl.maximum(diagonal - first, 0) + PER_STEP - 1) // PER_STEP
        base = count - first

        mbarrier.wait(q_full, q_phase)
        if Q_IN_REGISTERS:
            q = q_view.load(gl.DotOperandLayout(0, S, 2))
            if OWN_OUT:
                mbarrier.arrive(q_empty, count=1)
        else:
            q = q_view
        mbarrier.wait(full.index(at % SLOTS), (at // SLOTS) & 1)
        s = warpgroup_mma(
            q, slots.index(at % SLOTS).permute((1, 0)), gl.zeros([64, N], gl.float32, S), use_acc=False, is_async=True
        )
        s = warpgroup_mma_wait(0, deps=[s])
        mbarrier.arrive(empty.index(at % SLOTS), count=1)
        at += 1
        s = _mask(s, lists, base, count, position, KB, N, S)
        best = gl.maximum(gl.max(s, 1), -1e30)  # finite: where key blocks are finer than the tile, a query may see none yet
        shift = best * scale
        p = gl.exp2(s * scale - shift[:, None])
        total = gl.sum(p, 1)
        weights = gl.convert_layout(p.to(dtype), P)
        o = gl.zeros([64, D], gl.float32, OUT)
        for j in range(1, steps):
            base -= PER_STEP
            mbarrier.wait(full.index(at % SLOTS), (at // SLOTS) & 1)
            s = warpgroup_mma(
                q, slots.index(at % SLOTS).permute((1, 0)), gl.zeros([64, N], gl.float32, S), use_acc=False, is_async=True
            )
            mbarrier.wait(full.index((at + 1) % SLOTS), ((at + 1) // SLOTS) & 1)
            o = warpgroup_mma(weights, slots.index((at + 1) % SLOTS), o, is_async=True)
            s = warpgroup_mma_wait(1, deps=[s])
            mbarrier.arrive(empty.index(at % SLOTS), count=1)
            if j < masked:
                s = _mask(s, lists, base, count, position, KB, N, S)
            top = gl.maximum(best, gl.max(s, 1))
            shift = top * scale
            p = gl.exp2(s * scale - shift[:, None])
            alpha = gl.exp2((best - top) * scale)  # one where both are the floor: a difference of rounded products would not be
            total = total * alpha + gl.sum(p, 1)
            best = top
            o = warpgroup_mma_wait(0, deps=[o])
            mbarrier.arrive(empty.index((at + 1) % SLOTS), count=1)
            weights = gl.convert_layout(p.to(dtype), P)
            o = o * gl.convert_layout(alpha, gl.SliceLayout(1, OUT))[:, None]
            at += 2
        mbarrier.wait(full.index(at % SLOTS), (at // SLOTS) & 1)
        o = warpgroup_mma(weights, slots.index(at % SLOTS), o, is_async=True)
        o = warpgroup_mma_wait(0, deps=[o])
        mbarrier.arrive(empty.index(at % SLOTS), count=1)
        at += 1
        o = o * (1.0 / gl.convert_layout(total, gl.SliceLayout(1, OUT)))[:, None]
        if OWN_OUT:
            tma.store_wait(0)  # the last tile's output has left
        o_view.store(o.to(dtype))
        fence_async_shared()
        if SPLIT:
            if full_row:
                at_part = ((b * heads_kv * units * PACK + h + rr // QB) * (lines - listed) + line - listed) * QB + rr % QB
                gl.store(Sizes + at_part, shift + gl.log2(total))
                _write(pd, o_tiles, b, h, line - listed, W, QB, D)
            else:
                _write(od, o_tiles, b, h, row, W, QB, D)
        else:
            _write(od, o_tiles, b, h, row, W, QB, D)
        if not OWN_OUT:
            tma.store_wait(0)
        if not (Q_IN_REGISTERS and OWN_OUT):
            mbarrier.arrive(q_empty, count=1)
        q_phase ^= 1
    tma.store_wait(0)


# Lengths and the index's shape change from call to call and help no address: one compiled kernel serves them all.
@gluon.jit(do_not_specialize=["scb", "sch", "sib", "sih", "sim", "tiles", "lines", "listed", "splits", "bundle", "offset"])
def block_sparse_hopper_kernel(
    qd,
    kd,
    vd,
    od,
    pd,
    Counts,
    Indices,
    Every,
    Sizes,
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
    offset,
    scale,
    QB: gl.constexpr,
    KB: gl.constexpr,
    N: gl.constexpr,
    D: gl.constexpr,
    SLOTS: gl.constexpr,
    PACK: gl.constexpr,
    SHARED: gl.constexpr,
    FULL: gl.constexpr,
    SPLIT: gl.constexpr,
    Q_IN_REGISTERS: gl.constexpr,
    OWN_OUT: gl.constexpr,
):
    """Run one persistent program, as `hopper.py` launches it. Four warps (the first consumer), to which four (the second) and
    one (the producer) are added."""
    QR: gl.constexpr = QB if QB < 64 else 64
    CHUNKS: gl.constexpr = D // 64
    HALF: gl.constexpr = CHUNKS * (64 // QR)
    dtype: gl.constexpr = qd.dtype
    q0 = gl.allocate_shared_memory(dtype, [HALF, 1, 1, QR, 64], qd.layout)
    q1 = gl.allocate_shared_memory(dtype, [HALF, 1, 1, QR, 64], qd.layout)
    if OWN_OUT:
        o0 = gl.allocate_shared_memory(dtype, [HALF, 1, 1, QR, 64], qd.layout)
        o1 = gl.allocate_shared_memory(dtype, [HALF, 1, 1, QR, 64], qd.layout)
    else:
        o0 = q0
        o1 = q1
    ring = gl.allocate_shared_memory(dtype, [SLOTS * CHUNKS * (N // KB), 1, 1, KB, 64], kd.layout)
    q_full = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    q_empty = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    full = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], mbarrier.MBarrierLayout())
    mbarrier.init(q_full, count=1)
    mbarrier.init(q_empty, count=2)
    for i in gl.static_range(SLOTS):
        mbarrier.init(full.index(i), count=1)
        mbarrier.init(empty.index(i), count=2)
    fence_async_shared()
    gl.warp_specialize(
        [
            (
                _consume,
                (
                    od,
                    pd,
                    q0,
                    o0,
                    ring,
                    q_full,
                    q_empty,
                    full,
                    empty,
                    Counts,
                    Indices,
                    Every,
                    Sizes,
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
                    offset,
                    scale,
                    0,
                    QB,
                    KB,
                    N,
                    D,
                    SLOTS,
                    PACK,
                    SHARED,
                    FULL,
                    SPLIT,
                    Q_IN_REGISTERS,
                    OWN_OUT,
                ),
            ),
            (
                _consume,
                (
                    od,
                    pd,
                    q1,
                    o1,
                    ring,
                    q_full,
                    q_empty,
                    full,
                    empty,
                    Counts,
                    Indices,
                    Every,
                    Sizes,
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
                    offset,
                    scale,
                    1,
                    QB,
                    KB,
                    N,
                    D,
                    SLOTS,
                    PACK,
                    SHARED,
                    FULL,
                    SPLIT,
                    Q_IN_REGISTERS,
                    OWN_OUT,
                ),
            ),
            (
                produce,
                (
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
                    QB,
                    KB,
                    N,
                    D,
                    SLOTS,
                    PACK,
                    SHARED,
                    FULL,
                ),
            ),
        ],
        [4, 1],
        [240, 24],
    )
