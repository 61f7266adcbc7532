"""Attention over the blocks and single columns of a ColumnIndex, one function in front of every kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from attention_kernels.backends import TRITON_DTYPES, check_no_gradient, triton_problem
from attention_kernels.block_sparse import check_shapes
from attention_kernels.block_sparse.table import TRITON_BLOCKS, TRITON_DIMS
from attention_kernels.column_index import ColumnIndex
from attention_kernels.column_sparse.reference import column_sparse_reference

KERNELS = ("reference", "triton")


def resolve_kernel(kernel: str, *, device: torch.device, dtype: torch.dtype, head_dim: int, q_block: int, k_block: int) -> str:
    """Return the name of the kernel that will run: a name is checked, "auto" takes triton on CUDA and reference elsewhere.
    Raises ValueError where the name is none of these, or triton does not support the device, type or shape."""
    if kernel == "auto":
        kernel = "triton" if device.type == "cuda" and dtype != torch.float64 else "reference"
    if kernel not in KERNELS:
        raise ValueError(f"kernel={kernel} takes no single columns; choose one of: auto, {', '.join(KERNELS)}")
    if kernel == "reference":
        return kernel
    where = f"kernel={kernel} can't run here: it"
    if reason := triton_problem(device, dtype):
        raise ValueError(f"{where} {reason.removeprefix('it ')}; kernel=reference runs everywhere")
    if dtype not in TRITON_DTYPES:
        raise ValueError(f"{where} takes float16, bfloat16 and float32, not {dtype}; kernel=reference takes every type")
    if q_block not in TRITON_BLOCKS or k_block not in TRITON_BLOCKS or head_dim not in TRITON_DIMS:
        raise ValueError(
            f"{where} takes blocks of {', '.join(map(str, TRITON_BLOCKS))} and head dims {', '.join(map(str, TRITON_DIMS))}, "
            f"not {q_block} and {k_block}, {head_dim}; kernel=reference takes all"
        )
    return kernel


def column_sparse_attention(
    q: Tensor, k: Tensor, v: Tensor, index: ColumnIndex, *, scale: float | None = None, kernel: str = "auto"
) -> Tensor:
    """Compute causal attention of q [B, Hq, Q, D] to k, v [B, Hkv, K, D] over the kept blocks and open columns of `index`,
    whose heads are Hq or Hkv. Returns [B, Hq, Q, D].

    Query head h reads KV head h // (Hq // Hkv); the causal diagonal is at the bottom right (Q < K: a chunk of a prompt).
    `scale` is 1/√D unless given; triton takes positive ones only, and is forward only. Raises ValueError for shapes that
    don't fit, an index on another device, or a kernel that can't run.
    """
    check_shapes(q, k, v)
    batch, heads, q_len, dim = q.shape
    if (index.q_len, index.k_len) != (q_len, k.shape[2]):
        raise ValueError(f"the index is for {index.q_len} queries and {index.k_len} keys, not {q_len} and {k.shape[2]}")
    if index.open.shape[0] != batch or index.heads not in (heads, k.shape[1]):
        raise ValueError(
            f"index has batch and heads {tuple(index.open.shape[:2])}; expected {batch} and {heads} or {k.shape[1]}"
        )
    if index.open.device != q.device:
        raise ValueError(f"q is on {q.device} and the index on {index.open.device}; move it with index.to(q.device)")
    name = resolve_kernel(kernel, device=q.device, dtype=q.dtype, head_dim=dim, q_block=index.q_block, k_block=index.k_block)
    scale = dim**-0.5 if scale is None else scale
    if not q.numel():
        return torch.empty_like(q)
    if name == "triton":
        from attention_kernels.column_sparse.triton_kernel import column_sparse_triton  # imported late: needs triton

        check_no_gradient(name, q, k, v)
        return column_sparse_triton(q, k, v, index, scale=scale)
    return column_sparse_reference(q, k, v, index, scale=scale)
