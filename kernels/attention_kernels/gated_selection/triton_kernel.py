# mypy: disable-error-code="no-untyped-def"
"""Projecting, scoring and selecting of a short prompt in one launch, in Triton.

A program takes BLOCK_M rows of one gate head. It projects all keys of the head, and its queries; scores the ones against the
others, and selects in whole rows, all in registers. Programs of one head project its keys anew: at 64 key blocks and heads
of 128 that is 3 million multiply-adds of three TF32 products.

At 8k tokens, blocks of 128, 32 heads of 128, an H200 needs 3 µs to read 6.3 MB of weights and 5 MB of pooled vectors. Measured
were 41 µs: 13 to score and choose, as without a map, and the rest to project (results/short_speed). At 4k it is 17.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from attention_kernels.block_index import BlockIndex
from attention_kernels.gated_selection.side import Side
from attention_kernels.project.triton_kernel import project_rows
from attention_kernels.rope import kernel_tables
from attention_kernels.selection.cut_kernel import MASS, THRESHOLD, TOPK, select_rows


@dataclass(frozen=True)
class Launch:
    """The shape of a launch. tile: rows of scores a program; inner: elements of pooled vectors that it maps at once."""

    tile: int
    inner: int
    warps: int
    stages: int = 2


def launch_shape(rows: int, cols: int, *, on_gpu: bool) -> Launch:
    """Return the shape of a launch for `rows` rows of `cols` columns, a power of two."""
    if not on_gpu:
        return Launch(16, inner=16, warps=4 if cols <= 64 else 8)
    # Measured on an H200 at 64 columns: small tiles, as there are fewer programs than SMs
    if cols <= 64:
        return Launch(16, inner=64, warps=4, stages=3)
    return Launch(min(64, max(16, triton.next_power_of_2(rows))), inner=64, warps=8, stages=3)


# What changes with a prompt's length or the sparsity is not specialised on: no compiling for each.
@triton.jit(do_not_specialize=["heads", "q_group", "k_group", "rows", "listed", "cols", "q_len", "k_len", "width"])
def _select_gated(
    Q,
    K,
    QWeight,
    KWeight,
    QCos,
    QSin,
    KCos,
    KSin,
    Budget,
    Counts,
    Indices,
    sqb,
    sqh,
    sqm,
    skb,
    skh,
    skn,
    swqh,
    swqi,
    swkh,
    swki,
    scq,
    ssq,
    sck,
    ssk,
    heads,
    q_group,
    k_group,
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
    Q_INNER: tl.constexpr,
    K_INNER: tl.constexpr,
    D: tl.constexpr,
    HALF: tl.constexpr,
    PAD_HALF: tl.constexpr,
    PAD_REST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_I: tl.constexpr,
    W: tl.constexpr,
    FILL: tl.constexpr,
    Q_LINEAR: tl.constexpr,
    K_LINEAR: tl.constexpr,
    RULE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Select in BLOCK_M rows of one head. listed, level, width, FILL: see `select_rows`. W: columns, a power of two."""
    first = (tl.num_programs(0) - 1 - tl.program_id(0)) * BLOCK_M
    head = tl.program_id(1)
    b = (head // heads).to(tl.int64)
    h = (head % heads).to(tl.int64)
    n = tl.arange(0, W)
    keys = K + b * skb + (h // k_group) * skh + n.to(tl.int64)[:, None] * skn
    k_one, k_two, k_rest = project_rows(
        keys,
        KWeight + h * swkh,
        KCos,
        KSin,
        n,
        (n < cols)[:, None],
        swki,
        sck,
        ssk,
        K_INNER,
        D,
        HALF,
        PAD_HALF,
        PAD_REST,
        BLOCK_I,
        K_LINEAR,
        PRECISION,
    )
    m = first + tl.arange(0, BLOCK_M)
    queries = Q + b * sqb + (h // q_group) * sqh + m.to(tl.int64)[:, None] * sqm
    q_one, q_two, q_rest = project_rows(
        queries,
        QWeight + h * swqh,
        QCos,
        QSin,
        m,
        (m < rows)[:, None],
        swqi,
        scq,
        ssq,
        Q_INNER,
        D,
        HALF,
        PAD_HALF,
        PAD_REST,
        BLOCK_I,
        Q_LINEAR,
        PRECISION,
    )
    s = tl.zeros([BLOCK_M, W], tl.float32)
    if HALF > 0:
        s = tl.dot(q_one, k_one.T, s, input_precision=PRECISION)
        s = tl.dot(q_two, k_two.T, s, input_precision=PRECISION)
    if D > 2 * HALF:
        s = tl.dot(q_rest, k_rest.T, s, input_precision=PRECISION)
    place = head.to(tl.int64) * rows
    select_rows(
        s * scale,
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
    q, k = (x if x.stride(-1) == 1 else x.contiguous() for x in (queries.pooled, keys.pooled))
    batch, rows, cols = q.shape[0], q.shape[2], k.shape[2]
    heads = k.shape[1] if keys.weight is None else keys.weight.shape[0]
    dim = k.shape[3] if keys.weight is None else keys.weight.shape[2]
    rule, level = TOPK.value, 0.0
    if threshold is not None:
        rule, level = THRESHOLD.value, threshold
    elif mass is not None:
        rule, level = MASS.value, mass
    budget, width = (q, cols) if counts is None else counts  # without a budget q stands in, never read
    q_weight, q_weight_strides = _weight(queries.weight, q)
    k_weight, k_weight_strides = _weight(keys.weight, k)
    q_cos, q_sin, q_half = kernel_tables(queries.cos, queries.sin, unread=q)
    k_cos, k_sin, half = kernel_tables(keys.cos, keys.sin, unread=k)
    if q_half != half:
        raise ValueError(f"{2 * q_half} elements of the queries rotate, and {2 * half} of the keys")
    rest = dim - 2 * half
    wide = max(16, triton.next_power_of_2(cols))
    launch = launch_shape(rows, wide, on_gpu=q.is_cuda)
    out_counts = torch.empty(batch, heads, rows, dtype=torch.int32, device=q.device)
    indices = torch.empty(batch, heads, rows, width, dtype=torch.int32, device=q.device)
    with torch.cuda.device_of(q):  # Triton launches on the current device
        _select_gated[(-(-rows // launch.tile), batch * heads)](
            q,
            k,
            q_weight,
            k_weight,
            q_cos,
            q_sin,
            k_cos,
            k_sin,
            budget,
            out_counts,
            indices,
            *q.stride()[:3],
            *k.stride()[:3],
            *q_weight_strides,
            *k_weight_strides,
            q_cos.stride(0),
            q_sin.stride(0),
            k_cos.stride(0),
            k_sin.stride(0),
            heads,
            heads // q.shape[1],
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
            Q_INNER=q.shape[3],
            K_INNER=k.shape[3],
            D=dim,
            HALF=half,
            PAD_HALF=max(16, triton.next_power_of_2(half)) if half else 1,
            PAD_REST=max(16, triton.next_power_of_2(rest)) if rest else 1,
            BLOCK_M=launch.tile,
            BLOCK_I=launch.inner,
            W=wide,
            FILL=min(256, wide),
            Q_LINEAR=queries.weight is not None,
            K_LINEAR=keys.weight is not None,
            RULE=rule,
            PRECISION="tf32x3" if q.dtype == torch.float32 else "tf32",
            num_warps=launch.warps,
            num_stages=launch.stages,
        )
    return BlockIndex(out_counts, indices, q_block, k_block, q_len, k_len, full_rows)


def _weight(weight: Tensor | None, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """Return a map in x's type, its elements side by side, and its strides; where there is none, x in its place, never read."""
    if weight is None:
        return x, (0, 0)
    weight = weight.detach().to(x.dtype)
    weight = weight if weight.stride(-1) == 1 else weight.contiguous()
    return weight, (weight.stride(0), weight.stride(1))
