# mypy: disable-error-code="no-untyped-def"
"""Queries and keys of a gate projected in one launch, in Triton."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from attention_kernels.gated_selection.side import Side
from attention_kernels.project.triton_kernel import kernel_weight, launch_shape, prefetch, project_tile
from attention_kernels.rope import kernel_tables

PREFETCH = True
"""Bring the keys' weights to L2 while the launch before ends: they come from memory, as a model's layers have one set each."""


# What changes with a prompt's length is not specialised on: no compiling for each length.
@triton.jit(do_not_specialize=["q_length", "k_length", "k_tiles"])
def _project_pair(
    Q,
    K,
    QWeight,
    KWeight,
    QCos,
    QSin,
    KCos,
    KSin,
    OutQ,
    OutK,
    sqb,
    sqh,
    sqm,
    skb,
    skh,
    skm,
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
    q_length,
    k_length,
    k_tiles,
    Q_INNER: tl.constexpr,
    K_INNER: tl.constexpr,
    D: tl.constexpr,
    HALF: tl.constexpr,
    PAD_HALF: tl.constexpr,
    PAD_REST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_I: tl.constexpr,
    Q_LINEAR: tl.constexpr,
    K_LINEAR: tl.constexpr,
    OVERLAP: tl.constexpr,
    PREFETCH: tl.constexpr,
):
    """Project a part of BLOCK_M keys in each of the first k_tiles programs of a head, of queries in the others. OVERLAP: the
    launch before may not have ended. PREFETCH: bring weights to L2 meanwhile."""
    if OVERLAP:
        tl.extra.cuda.gdc_launch_dependents()  # who reads the results may be put on the GPU now, and waits there
        if PREFETCH and K_LINEAR and HALF > 0:
            i = tl.minimum(tl.arange(0, triton.next_power_of_2(K_INNER)), K_INNER - 1)[:, None]
            second = tl.arange(0, 2)[None, :]
            weights = KWeight + (tl.program_id(1) % heads).to(tl.int64) * swkh + tl.program_id(2) * PAD_HALF
            prefetch(weights + i * swki + second * HALF)
        tl.extra.cuda.gdc_wait()  # until pooled vectors are there
    me = tl.program_id(0)
    if me < k_tiles:  # they take longest: first
        project_tile(
            K,
            KWeight,
            KCos,
            KSin,
            OutK,
            skb,
            skh,
            skm,
            swkh,
            swki,
            sck,
            ssk,
            heads,
            k_group,
            k_length,
            me,
            tl.program_id(1),
            tl.program_id(2),
            K_INNER,
            D,
            HALF,
            PAD_HALF,
            PAD_REST,
            BLOCK_M,
            BLOCK_I,
            K_LINEAR,
        )
    else:
        project_tile(
            Q,
            QWeight,
            QCos,
            QSin,
            OutQ,
            sqb,
            sqh,
            sqm,
            swqh,
            swqi,
            scq,
            ssq,
            heads,
            q_group,
            q_length,
            me - k_tiles,
            tl.program_id(1),
            tl.program_id(2),
            Q_INNER,
            D,
            HALF,
            PAD_HALF,
            PAD_REST,
            BLOCK_M,
            BLOCK_I,
            Q_LINEAR,
        )


def project_pair(queries: Side, keys: Side, *, overlap: bool) -> tuple[Tensor, Tensor]:
    """Return what `project` makes of both sides, which have the same heads and elements once projected. overlap: with the end
    of the launch before, and the beginning of the next, which waits for this one.

    Raises ValueError where not as many elements of both rotate.
    """
    q, k = (x if x.stride(-1) == 1 else x.contiguous() for x in (queries.pooled, keys.pooled))
    batch, rows, cols = q.shape[0], q.shape[2], k.shape[2]
    heads, dim = (q.shape[1], q.shape[3]) if queries.weight is None else (queries.weight.shape[0], queries.weight.shape[2])
    q_cos, q_sin, half = kernel_tables(queries.cos, queries.sin, unread=q)
    k_cos, k_sin, k_half = kernel_tables(keys.cos, keys.sin, unread=k)
    if k_half != half:
        raise ValueError(f"{2 * half} elements of the queries rotate, and {2 * k_half} of the keys")
    q_weight, q_strides = kernel_weight(queries.weight, q)
    k_weight, k_strides = kernel_weight(keys.weight, k)
    out_q = torch.empty(batch, heads, rows, dim, dtype=torch.float32, device=q.device)
    out_k = torch.empty(batch, heads, cols, dim, dtype=torch.float32, device=q.device)
    launch = launch_shape(cols, half, on_gpu=q.is_cuda)
    sizes, parts = launch.sizes(dim, half)
    q_tiles, k_tiles = -(-rows // launch.tile), -(-cols // launch.tile)
    options: dict[str, Any] = {"launch_pdl": True} if overlap else {}
    with torch.cuda.device_of(q):  # Triton launches on the current device
        _project_pair[(k_tiles + q_tiles, batch * heads, parts)](
            q,
            k,
            q_weight,
            k_weight,
            q_cos,
            q_sin,
            k_cos,
            k_sin,
            out_q,
            out_k,
            *q.stride()[:3],
            *k.stride()[:3],
            *q_strides,
            *k_strides,
            q_cos.stride(0),
            q_sin.stride(0),
            k_cos.stride(0),
            k_sin.stride(0),
            heads,
            heads // q.shape[1],
            heads // k.shape[1],
            rows,
            cols,
            k_tiles,
            Q_INNER=q.shape[3],
            K_INNER=k.shape[3],
            Q_LINEAR=queries.weight is not None,
            K_LINEAR=keys.weight is not None,
            OVERLAP=overlap,
            PREFETCH=PREFETCH,
            **sizes,
            **options,
        )
    return out_q, out_k
