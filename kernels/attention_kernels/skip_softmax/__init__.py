"""Attention that skips a tile's softmax, values and second product when its scores say that it cannot matter.

Q Kᵀ is always paid, so about half of dense attention is the floor. What ran comes back as a BlockIndex.
"""

from __future__ import annotations

import torch
from torch import Tensor

from attention_kernels.backends import KERNELS, check_no_gradient, triton_problem
from attention_kernels.block_index import BlockIndex
from attention_kernels.block_sparse import check_shapes
from attention_kernels.skip_softmax.reference import skip_softmax_reference
from attention_kernels.skip_softmax.rule import SkipRule

__all__ = ["KERNELS", "SkipRule", "resolve_skip", "skip_softmax_attention"]

TRITON_TILES = (16, 32, 64, 128)
TRITON_DIMS = (16, 32, 64, 96, 128, 256)


def resolve_skip(kernel: str, *, device: torch.device, dtype: torch.dtype, head_dim: int, q_block: int, k_block: int) -> str:
    """Return the name of the kernel that will run: "auto" takes triton where it runs on a GPU, else reference. Raises
    ValueError where the name is unknown or says why the kernel can't run."""
    if kernel not in ("auto", *KERNELS):
        raise ValueError(f"kernel={kernel} has no skipping of tiles inside it; choose one of: auto, {', '.join(KERNELS)}")
    reason = _triton_reason(device, dtype, head_dim, q_block, k_block)
    if kernel == "auto":
        return "triton" if device.type == "cuda" and reason is None else "reference"
    if kernel == "triton" and reason is not None:
        raise ValueError(f"kernel=triton can't skip tiles here: {reason}; kernel=reference runs everywhere")
    return kernel


def _triton_reason(device: torch.device, dtype: torch.dtype, head_dim: int, q_block: int, k_block: int) -> str | None:
    """Return None where the Triton kernel runs, else why not. Its tiles are the rule's, so it can't take smaller ones where
    these don't fit, as float32 would need on a GPU."""
    if reason := triton_problem(device, dtype):
        return reason
    if dtype.itemsize > (2 if device.type == "cuda" else 4):
        return f"it takes float16 and bfloat16, not {dtype}"
    if q_block not in TRITON_TILES or k_block not in TRITON_TILES:
        return f"it takes tiles of {', '.join(map(str, TRITON_TILES))}, not {q_block} and {k_block}"
    if head_dim not in TRITON_DIMS:
        return f"it takes head dims {', '.join(map(str, TRITON_DIMS))}, not {head_dim}"
    return None


def skip_softmax_attention(
    q: Tensor, k: Tensor, v: Tensor, rule: SkipRule, *, scale: float | None = None, kernel: str = "auto"
) -> tuple[Tensor, BlockIndex]:
    """Compute causal attention of q [B,Hq,Q,D] to k, v [B,Hkv,K,D] with the rule's tiles left out: [B,Hq,Q,D], and the tiles
    whose P·V was computed, for each query head (`counts` int32 [B,Hq,Mq]; `indices` as wide as there are key tiles).

    Query head h reads KV head h // (Hq // Hkv); the causal diagonal is at the bottom right. scale is 1/√D unless given, above
    0. Scores and softmax in float32 (float64 for float64 inputs), as the kernel's dense kin have them. Never waits for the
    device in triton. Raises ValueError for shapes that don't fit or a kernel that can't run.
    """
    check_shapes(q, k, v)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if not scale > 0:
        raise ValueError(f"scale={scale}: must be above 0")
    name = resolve_skip(
        kernel, device=q.device, dtype=q.dtype, head_dim=q.shape[-1], q_block=rule.q_block, k_block=rule.k_block
    )
    if name == "triton":
        from attention_kernels.skip_softmax.triton_kernel import skip_softmax_triton  # imported late: needs triton

        check_no_gradient(name, q, k, v)
        return skip_softmax_triton(q, k, v, rule, scale=scale)
    return skip_softmax_reference(q, k, v, rule, scale=scale)
