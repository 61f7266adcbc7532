# mypy: disable-error-code="no-untyped-def"
"""The second half of the kernel for Hopper: a consumer warpgroup, which multiplies what the producer has loaded."""

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

from attention_kernels.block_sparse.hopper_producer_kernel import part_at, program_turns, row_list, tile_at


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
def consume(
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
