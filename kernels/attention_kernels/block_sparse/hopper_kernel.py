"""Block-sparse attention for Hopper (sm_90) in Gluon: a producer warp gathers the listed key blocks with TMA, two warpgroups
multiply with wgmma.

One tile is 128 query rows: a query block of 128, or the blocks of several query heads that share one index. One step is
`N` keys, gathered from as many listed blocks as fill them, so that fine blocks run on the same matrix instructions as
coarse ones. The product Q·K of the next step and P·V of the last run while the softmax of the step between is computed
(FlashAttention-3, arXiv 2407.08608, section 3.2). Programs are persistent: while the consumers finish a tile, the producer
already loads the next one's queries and keys. A full row of the index is a tile for each part of its keys, whose outputs
`attention_kernels.full_rows.combine_kernel` puts together.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier

from attention_kernels.block_sparse.hopper_consumer_kernel import consume
from attention_kernels.block_sparse.hopper_producer_kernel import produce

ROWS = 128
"""Query rows of a tile, 64 for each consumer warpgroup."""


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
                consume,
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
                consume,
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
