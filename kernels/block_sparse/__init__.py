"""Attention over the blocks of a BlockIndex, one function in front of every kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.block_index import BlockIndex
from kernels.block_sparse.reference import block_sparse_reference
from kernels.block_sparse.sdpa import block_sparse_sdpa

KERNELS = ("reference", "sdpa", "triton")
TRITON_BLOCKS = (16, 32, 64, 128)
TRITON_DIMS = (16, 32, 64, 96, 128, 256)


def resolve_kernel(kernel: str, *, device: torch.device, dtype: torch.dtype, head_dim: int, q_block: int, k_block: int) -> str:
    """The kernel that will run: an explicit name is checked, "auto" takes triton on CUDA and sdpa elsewhere.

    Raises ValueError where the name is unknown or the kernel does not support the device, type or shape.
    """
    if kernel == "auto":
        kernel = "triton" if device.type == "cuda" else "sdpa"
    if kernel not in KERNELS:
        raise ValueError(f"kernel={kernel} is not known; choose one of: auto, {', '.join(KERNELS)}")
    if kernel == "triton":
        if device.type != "cuda" and not _interpreting():
            raise ValueError(f"kernel=triton needs a CUDA device, not {device.type}; use kernel=reference")
        if dtype not in (torch.float16, torch.bfloat16, torch.float32):
            raise ValueError(f"kernel=triton takes float16, bfloat16 and float32, not {dtype}; use kernel=reference")
        for name, block in (("query", q_block), ("key", k_block)):
            if block not in TRITON_BLOCKS:
                raise ValueError(f"kernel=triton: {name} block size {block} is not supported; choose one of {TRITON_BLOCKS}")
        if head_dim not in TRITON_DIMS:
            raise ValueError(f"kernel=triton: head dim {head_dim} is not supported; it takes {TRITON_DIMS}")
    return kernel


def _interpreting() -> bool:
    import os

    return os.environ.get("TRITON_INTERPRET") == "1"


def block_sparse_attention(
    q: Tensor, k: Tensor, v: Tensor, index: BlockIndex, *, scale: float | None = None, kernel: str = "auto"
) -> Tensor:
    """Causal attention of q [B, Hq, Q, D] to k, v [B, Hkv, K, D] over the key blocks of `index`. Returns [B, Hq, Q, D].

    Query head h reads KV head h // (Hq // Hkv); the causal diagonal is at the bottom right (Q < K: a chunk of a prompt).
    `scale` is 1/√D unless given. Raises ValueError for shapes that don't fit, or a kernel that can't run.
    """
    check_shapes(q, k, v)
    batch, heads, q_len, dim = q.shape
    if (index.q_len, index.k_len) != (q_len, k.shape[2]):
        raise ValueError(f"the index is for {index.q_len} queries and {index.k_len} keys, not {q_len} and {k.shape[2]}")
    if index.counts.shape[0] != batch or index.counts.shape[1] not in (heads, k.shape[1]):
        raise ValueError(
            f"index has batch and heads {tuple(index.counts.shape[:2])}; expected {batch} and {heads} or {k.shape[1]}"
        )
    scale = dim**-0.5 if scale is None else scale
    name = resolve_kernel(kernel, device=q.device, dtype=q.dtype, head_dim=dim, q_block=index.q_block, k_block=index.k_block)
    if name == "triton":
        from kernels.block_sparse.triton_kernel import block_sparse_triton  # imported late: needs triton

        return block_sparse_triton(q, k, v, index, scale=scale)
    run = block_sparse_sdpa if name == "sdpa" else block_sparse_reference
    return run(q, k, v, index, scale=scale)


def check_shapes(q: Tensor, k: Tensor, v: Tensor) -> None:
    """ValueError unless q [B, Hq, Q, D] and k, v [B, Hkv, K, D] go together."""
    if q.ndim != 4 or k.shape != v.shape or k.shape[0] != q.shape[0] or k.shape[3] != q.shape[3]:
        raise ValueError(f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}: expected [B,Hq,Q,D], [B,Hkv,K,D] twice")
    if q.shape[1] % k.shape[1]:
        raise ValueError(f"{q.shape[1]} query heads are no multiple of {k.shape[1]} KV heads")
    if q.shape[2] > k.shape[2]:
        raise ValueError(f"{q.shape[2]} queries for {k.shape[2]} keys: queries are the last tokens of the keys")
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"q, k and v have types {q.dtype}, {k.dtype}, {v.dtype}; they must be the same")
