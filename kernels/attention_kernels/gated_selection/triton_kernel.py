# mypy: disable-error-code="no-untyped-def"
"""Projecting, scoring and selecting of a short prompt in two launches, in Triton.

The first projects queries and keys, each once, in as many programs as there are SMs (`project_kernel.py`); none where there is
nothing to project. A program of the second takes BLOCK_M rows of one gate head, scores them against all keys of the head, and
selects in whole rows, all in registers. Each launch begins while the one before ends.

Floor at 8k tokens, blocks of 128, 32 heads of 128, an H200: 6.3 MB of weights and 5 MB of pooled vectors are read, 3 µs. What
remains is one program's own time, as there are about as many programs as SMs, each running its code once. Projecting all
keys of a head in each program that selects took 41 µs there, and 13 without projecting.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from attention_kernels.block_index import BlockIndex
from attention_kernels.decode.triton_kernel import can_overlap
from attention_kernels.gated_selection.project_kernel import project_pair
from attention_kernels.gated_selection.side import Side
from attention_kernels.project.dot_kernel import dot_parts, whole
from attention_kernels.project.triton_kernel import prefetch
from attention_kernels.selection.cut_kernel import MASS, THRESHOLD, TOPK, select_rows

OVERLAP = True
"""Begin a launch while the one before ends, where the GPU can."""


@dataclass(frozen=True)
class Launch:
    """The shape of a launch. tile: rows of scores a program; inner: elements of vectors that it multiplies at once."""

    tile: int
    inner: int
    warps: int
    stages: int = 2


def launch_shape(rows: int, cols: int, *, on_gpu: bool) -> Launch:
    """Return the shape of a launch for `rows` rows of `cols` columns, a power of two."""
    if not on_gpu:
        return Launch(16, inner=32, warps=4)
    # Small tiles, as there are fewer programs than SMs, and a short loop: a program runs its code once, and waits for it
    return Launch(16, inner=32, warps=8, stages=4)


# What changes with a prompt's length or the sparsity is not specialised on: no compiling for each.
@triton.jit(do_not_specialize=["heads", "group", "rows", "listed", "cols", "q_len", "k_len", "width"])
def _select_gated(
    Q,
    K,
    Budget,
    Counts,
    Indices,
    sqb,
    sqh,
    sqm,
    skb,
    skh,
    skn,
    heads,
    group,
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
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    W: tl.constexpr,
    FILL: tl.constexpr,
    RULE: tl.constexpr,
    BEST: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Select in BLOCK_M rows of one head. listed, level, width, FILL, BEST: see `select_rows`. W: columns, a power of two.
    OVERLAP: the launch before may not have ended."""
    first = (tl.num_programs(0) - 1 - tl.program_id(0)) * BLOCK_M
    if OVERLAP:
        if RULE == TOPK:
            prefetch(Budget + first)
        tl.extra.cuda.gdc_wait()  # until the vectors are there
    head = tl.program_id(1)
    b = (head // heads).to(tl.int64)
    h = (head % heads).to(tl.int64)
    m = first + tl.arange(0, BLOCK_M)
    n = tl.arange(0, W)
    queries = Q + b * sqb + h * sqh + m.to(tl.int64)[:, None] * sqm
    keys = K + b * skb + (h // group) * skh + n.to(tl.int64)[:, None] * skn
    s = tl.zeros([BLOCK_M, W], tl.float32)
    low = tl.zeros([BLOCK_M, W], tl.float32)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)[None, :]
        q = tl.load(queries + d, mask=(m < rows)[:, None] & (d < D), other=0.0)
        k = tl.load(keys + d, mask=(n < cols)[:, None] & (d < D), other=0.0)
        s, low = dot_parts(q, k.T, s, low)
    place = head.to(tl.int64) * rows
    select_rows(
        whole(s, low) * scale,
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
        0.0,
        1.0,
        Q_BLOCK,
        K_BLOCK,
        FILL,
        RULE,
        False,
        BEST,
    )


def select_gated_triton(
    queries: Side,
    keys: Side,
    shape: tuple[int, int, int, int],
    *,
    scale: float,
    counts: tuple[Tensor, int] | None,
    threshold: float | None,
    mass: float | None,
    full_rows: int,
) -> BlockIndex:
    """Run `attention_kernels.gated_selection.select_gated` in Triton. counts: what `kept_counts` returned, or None for the
    other rules."""
    q_len, k_len, q_block, k_block = shape
    overlap = OVERLAP and can_overlap(queries.pooled.device)
    if queries.is_projected() and keys.is_projected():
        q, k = (x if x.stride(-1) == 1 else x.contiguous() for x in (queries.pooled, keys.pooled))
    else:
        q, k = project_pair(queries, keys, overlap=overlap)
    batch, rows, cols, dim = q.shape[0], q.shape[2], k.shape[2], k.shape[3]
    heads = q.shape[1]
    rule, level = TOPK.value, 0.0
    if threshold is not None:
        rule, level = THRESHOLD.value, threshold
    elif mass is not None:
        rule, level = MASS.value, mass
    budget, width = (q, cols) if counts is None else counts  # without a budget q stands in, never read
    wide = max(16, triton.next_power_of_2(cols))
    launch = launch_shape(rows, wide, on_gpu=q.is_cuda)
    out_counts = torch.empty(batch, heads, rows, dtype=torch.int32, device=q.device)
    indices = torch.empty(batch, heads, rows, width, dtype=torch.int32, device=q.device)
    options: dict[str, Any] = {"launch_pdl": True} if overlap else {}
    with torch.cuda.device_of(q):  # Triton launches on the current device
        _select_gated[(-(-rows // launch.tile), batch * heads)](
            q,
            k,
            budget,
            out_counts,
            indices,
            *q.stride()[:3],
            *k.stride()[:3],
            heads,
            heads // k.shape[1],
            rows,
            rows - full_rows,
            cols,
            q_len,
            k_len,
            scale,
            level,
            width,
            Q_BLOCK=q_block,
            K_BLOCK=k_block,
            D=dim,
            BLOCK_M=launch.tile,
            BLOCK_D=launch.inner,
            W=wide,
            FILL=min(256, wide),
            RULE=rule,
            BEST=min(wide, max(16, triton.next_power_of_2(width))),
            OVERLAP=overlap,
            num_warps=launch.warps,
            num_stages=launch.stages,
            **options,
        )
    return BlockIndex(out_counts, indices, q_block, k_block, q_len, k_len, full_rows)
