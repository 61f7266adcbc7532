"""Attention of the newest tokens over selected key blocks: one step of sparse decoding."""

from __future__ import annotations

import torch
from torch import Tensor

from attention_kernels.backends import KERNELS, check_no_gradient, check_triton
from attention_kernels.block_index import BlockIndex
from attention_kernels.block_sparse import check_shapes
from attention_kernels.decode.reference import sparse_decode_reference

__all__ = ["KERNELS", "MAX_QUERIES", "resolve_decode", "sparse_decode"]

TRITON_BLOCKS = (16, 32, 64, 128)
MAX_QUERIES = 8
"""New tokens in one step: more than one where several are guessed ahead and checked together (speculative decoding)."""
MAX_ROWS = 128
"""Query rows (query heads that share a list × new tokens) of one tile of the Triton kernel."""


def sparse_decode(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    index: BlockIndex,
    *,
    scale: float | None = None,
    starts: Tensor | None = None,
    kernel: str = "auto",
) -> Tensor:
    """Compute attention of q [B, Hq, Q, D], the last Q <= 8 tokens, to the key blocks of `index` in k, v [B, Hkv, K, D].

    Returns [B, Hq, Q, D]. `scale` is 1/√D unless given. The index has one query block (q_len = Q <= q_block) and Hkv heads,
    so that the query heads of a group share their blocks and each block is read once for all of them; with Hq heads every
    query head has its own blocks, which reads more and is no less right. Query i stands at position i + K - Q and sees
    nothing after it.

    kernel "auto": triton on a GPU (reference for float64), reference elsewhere. The Triton kernel waits for nothing on the
    host: it can be captured in a CUDA graph, and counts and indices may change between replays.

    starts: int32 [B], where each sequence's keys begin in a batch that is padded on the left; its block j then holds keys
    starts[b] + j × k_block on, so that blocks don't depend on the padding, which is never read. The index (counts at most
    the sequence's own blocks) is still made for k_len = K.
    Raises ValueError for shapes that don't fit, or a kernel that can't run.
    """
    check_shapes(q, k, v)
    batch, heads, q_len, dim = q.shape
    kv_heads, k_len = k.shape[1], k.shape[2]
    if q_len > MAX_QUERIES:
        raise ValueError(
            f"sparse_decode takes 1 to {MAX_QUERIES} queries, not {q_len}; use block_sparse_attention for a prompt"
        )
    if (index.q_len, index.k_len) != (q_len, k_len):
        raise ValueError(f"the index is for {index.q_len} queries and {index.k_len} keys, not {q_len} and {k_len}")
    if index.q_block < q_len:
        raise ValueError(f"the index has query blocks of {index.q_block}; one block must hold all {q_len} queries")
    if index.counts.shape[0] != batch or index.counts.shape[1] not in (heads, kv_heads):
        raise ValueError(
            f"index has batch and heads {tuple(index.counts.shape[:2])}; expected {batch} and {kv_heads} or {heads}"
        )
    if index.counts.device != q.device:
        raise ValueError(f"q is on {q.device} and the index on {index.counts.device}; move it with index.to(q.device)")
    if starts is not None and (starts.shape != (batch,) or starts.dtype != torch.int32 or starts.device != q.device):
        raise ValueError(
            f"starts is {starts.dtype} {tuple(starts.shape)} on {starts.device}: must be int32 ({batch},) on {q.device}"
        )
    rows = heads // index.counts.shape[1] * q_len
    name = resolve_decode(kernel, device=q.device, dtype=q.dtype, head_dim=dim, k_block=index.k_block, rows=rows)
    scale, index = dim**-0.5 if scale is None else scale, index.with_all_lists()
    if name == "triton":
        from attention_kernels.decode.triton_kernel import sparse_decode_triton  # imported late: needs triton

        check_no_gradient(name, q, k, v)
        return sparse_decode_triton(q, k, v, index, scale=scale, starts=starts)
    return sparse_decode_reference(q, k, v, index, scale=scale, starts=starts)


def resolve_decode(kernel: str, *, device: torch.device, dtype: torch.dtype, head_dim: int, k_block: int, rows: int = 1) -> str:
    """Return the kernel that will run; `rows`: query heads that share a list of blocks × queries. Raises ValueError where the
    name is unknown or the kernel does not support the device, type or shape."""
    if kernel == "auto":
        kernel = "triton" if device.type == "cuda" and dtype != torch.float64 else "reference"
    if kernel not in KERNELS:
        raise ValueError(f"kernel={kernel} is not known; choose one of: auto, {', '.join(KERNELS)}")
    if kernel == "triton":
        check_triton(device, dtype)
        if k_block not in TRITON_BLOCKS:
            raise ValueError(f"kernel=triton: key block size {k_block} is not supported; choose one of {TRITON_BLOCKS}")
        if head_dim % 16 or not 16 <= head_dim <= 256:
            raise ValueError(f"kernel=triton: head dim {head_dim} is not supported; it takes multiples of 16 up to 256")
        if rows > MAX_ROWS:
            raise ValueError(f"kernel=triton takes at most {MAX_ROWS} query heads × queries for a list of blocks, not {rows}")
    return kernel
