"""Dense attention of the few queries at the end of a prompt, whose rows keep every key block, beside a block-sparse kernel.

One program that worked through such a row alone would end long after all others, so the keys are split among programs. Floor on
an H200, of Llama-3.1-8B's attention (32 query heads, 8 KV heads of 128) at FlashAttention-3's 650 TFLOP/s: 128 queries of 8k
keys are 17 GFLOP, 0.026 ms; 256 of 32k keys 137 GFLOP, 0.21 ms. The keys and values are read once by each tile of queries,
out of L2. The kernel for Hopper does the same among its other tiles, which saves the end of a launch of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from attention_kernels.backends import TRITON_DTYPES, triton_problem
from attention_kernels.dense import dense_attention, resolve_dense
from attention_kernels.full_rows.reference import full_rows_reference
from attention_kernels.full_rows.sdpa import full_rows_sdpa

KERNELS = ("fa3", "triton", "sdpa", "reference")
MOST_DIM = 256


def resolve_full_rows(kernels: Sequence[str], *, device: torch.device, dtype: torch.dtype, head_dim: int) -> str:
    """Return the first of `kernels` that runs here. Raises ValueError where none does, or one is unknown."""
    for kernel in kernels:
        if _runs(kernel, device, dtype, head_dim):
            return kernel
    raise ValueError(f"none of {', '.join(kernels)} computes full rows on {device} with {dtype} and head dim {head_dim}")


def _runs(kernel: str, device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    if kernel not in KERNELS:
        raise ValueError(f"kernel {kernel} of full rows is not known; choose one of: {', '.join(KERNELS)}")
    if kernel == "fa3":
        return device.type == "cuda" and resolve_dense("auto", device=device, dtype=dtype, head_dim=head_dim) == kernel
    if kernel == "triton":
        return triton_problem(device, dtype) is None and dtype in TRITON_DTYPES and head_dim <= MOST_DIM
    return True


def full_row_attention(q: Tensor, k: Tensor, v: Tensor, out: Tensor, *, scale: float, kernel: str) -> None:
    """Write dense causal attention of q [B, Hq, T, D], the last T of the K tokens of k, v [B, Hkv, K, D], to out [B, Hq, T, D].

    out may be a part of a larger tensor. kernel: a resolved name. triton takes positive scales only. No host sync.
    """
    if kernel == "triton":
        from attention_kernels.full_rows.triton_kernel import full_rows_triton  # imported late: needs triton

        full_rows_triton(q, k, v, out, scale=scale)
    elif kernel == "fa3":
        out.copy_(dense_attention(q, k, v, scale=scale, kernel=kernel))
    else:
        rows = full_rows_reference if kernel == "reference" else full_rows_sdpa
        rows(q, k, v, out, scale=scale)
