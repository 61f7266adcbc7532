"""Attention over the blocks of a BlockIndex, one function in front of every kernel."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from attention_kernels.backends import needs_gradient
from attention_kernels.block_index import BlockIndex
from attention_kernels.block_sparse.table import BACKENDS, preferred
from attention_kernels.full_rows import full_row_attention, resolve_full_rows
from attention_kernels.merge_blocks import merge_blocks

KERNELS = tuple(BACKENDS)


def resolve_kernel(
    kernel: str,
    *,
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    q_block: int,
    k_block: int,
    shared: int = 1,
    grad: bool = False,
) -> str:
    """Return the name of the kernel that will run. An explicit name is checked. "auto" takes the first that runs here: on
    Hopper `hopper`, else `triton`; on other GPUs `triton`; on a CPU `sdpa`.

    shared: query heads that have one index, Hq ÷ index heads. grad: an input requires a gradient, so only kernels with a
    backward pass run; "auto" then takes `triton` on Hopper too. Raises ValueError where the name is unknown or the kernel does
    not support the device, type or shape.
    """
    return _resolve(kernel, device, dtype, head_dim, q_block, k_block, shared, grad)


@lru_cache(maxsize=256)  # asked at every call: what a device can do and which packages are installed doesn't change
def _resolve(
    kernel: str, device: torch.device, dtype: torch.dtype, head_dim: int, q_block: int, k_block: int, shared: int, grad: bool
) -> str:
    if kernel != "auto" and kernel not in BACKENDS:
        raise ValueError(f"kernel={kernel} is not known; choose one of: auto, {', '.join(BACKENDS)}")
    reason = None
    for name in preferred(device) if kernel == "auto" else (kernel,):
        reason = BACKENDS[name].problem(
            device=device, dtype=dtype, head_dim=head_dim, q_block=q_block, k_block=k_block, shared=shared, grad=grad
        )
        if reason is None:
            return name
    raise ValueError(f"kernel={name} can't run here: {reason}; kernel=sdpa runs everywhere")


def as_run(index: BlockIndex, kernel: str) -> BlockIndex:
    """Return the index that `kernel` (a resolved name) runs when it is given `index`: the same, or one of merged blocks.
    Density and FLOPs are to be taken from it. No host sync."""
    size = BACKENDS[kernel].merges
    return index if size is None else merge_blocks(index, size // index.q_block, size // index.k_block)


def block_sparse_attention(
    q: Tensor, k: Tensor, v: Tensor, index: BlockIndex, *, scale: float | None = None, kernel: str = "auto"
) -> Tensor:
    """Compute causal attention of q [B, Hq, Q, D] to k, v [B, Hkv, K, D] over the key blocks of `index`. Returns [B, Hq, Q, D].

    Query head h reads KV head h // (Hq // Hkv); the causal diagonal is at the bottom right (Q < K: a chunk of a prompt).
    `scale` is 1/√D unless given; triton and hopper take positive ones only. A kernel that merges blocks attends to all of
    `as_run(index, kernel)`. Full rows are dense attention beside the kernel, by `full_row_kernel`. Where an input requires a
    gradient the output has one: `reference`, `sdpa`, `triton` and `flash4` have a backward pass (see `docs/kernels.md`) and
    then compute full rows themselves; others refuse. Raises ValueError for shapes that don't fit, an index on another device,
    or a kernel that can't run.
    """
    check_shapes(q, k, v)
    batch, heads, q_len, dim = q.shape
    if (index.q_len, index.k_len) != (q_len, k.shape[2]):
        raise ValueError(f"the index is for {index.q_len} queries and {index.k_len} keys, not {q_len} and {k.shape[2]}")
    if index.counts.shape[0] != batch or index.counts.shape[1] not in (heads, k.shape[1]):
        raise ValueError(
            f"index has batch and heads {tuple(index.counts.shape[:2])}; expected {batch} and {heads} or {k.shape[1]}"
        )
    if index.counts.device != q.device:
        raise ValueError(f"q is on {q.device} and the index on {index.counts.device}; move it with index.to(q.device)")
    name = resolve_kernel(
        kernel,
        device=q.device,
        dtype=q.dtype,
        head_dim=dim,
        q_block=index.q_block,
        k_block=index.k_block,
        shared=heads // index.counts.shape[1],
        grad=(grad := needs_gradient(q, k, v)),
    )
    if not q.numel():
        return q + (k.sum() + v.sum()) if grad else torch.empty_like(q)  # as empty; the gradients are zeros
    index, scale = as_run(index, name), dim**-0.5 if scale is None else scale
    backend = BACKENDS[name]
    if grad and backend.gradient is not None:
        return backend.gradient.run(q, k, v, index, scale=scale)
    alone = not backend.full_rows  # it computes full rows itself
    out = backend.run(q, k, v, index, scale=scale) if index.listed_rows or alone else torch.empty_like(q)
    if index.full_rows and not alone:
        dense, first = full_row_kernel(name, device=q.device, dtype=q.dtype, head_dim=dim), index.listed_queries
        full_row_attention(q[:, :, first:], k, v, out[:, :, first:], scale=scale, kernel=dense)
    return out


@lru_cache(maxsize=256)  # asked at every call, as resolve_kernel is
def full_row_kernel(kernel: str, *, device: torch.device, dtype: torch.dtype, head_dim: int) -> str:
    """Return the dense kernel (`attention_kernels.full_rows`) that computes full rows beside `kernel`, a resolved name, or
    that itself where it does so alone."""
    beside = BACKENDS[kernel].full_rows
    return resolve_full_rows(beside, device=device, dtype=dtype, head_dim=head_dim) if beside else kernel


def check_shapes(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Raise ValueError unless q [B, Hq, Q, D] and k, v [B, Hkv, K, D] go together."""
    if q.ndim != 4 or k.shape != v.shape or k.shape[0] != q.shape[0] or k.shape[3] != q.shape[3]:
        raise ValueError(f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}: expected [B,Hq,Q,D], [B,Hkv,K,D] twice")
    if q.shape[1] % k.shape[1]:
        raise ValueError(f"{q.shape[1]} query heads are no multiple of {k.shape[1]} KV heads")
    if q.shape[2] > k.shape[2]:
        raise ValueError(f"{q.shape[2]} queries for {k.shape[2]} keys: queries are the last tokens of the keys")
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"q, k and v have types {q.dtype}, {k.dtype}, {v.dtype}; they must be the same")
