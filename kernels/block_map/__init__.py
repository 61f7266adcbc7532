"""The true attention map, pooled over blocks: what learned gates are trained on and what the oracle selects by."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.block_map.reference import block_map_reference

KERNELS = ("reference", "triton")
POOLS = ("max", "mass")
TRITON_BLOCKS = (16, 32, 64, 128)


def block_map(
    q: Tensor, k: Tensor, *, q_block: int, k_block: int, scale: float | None = None, pool: str = "max", kernel: str = "auto"
) -> Tensor:
    """Pooled causal attention probabilities of q [B, Hq, Q, D] over k [B, Hkv, K, D]: float32 [B, Hq, Mq, Nk].

    pool "max": the largest probability inside the block (SeerAttention, arXiv 2410.13276, §3.2); "mass": the sum over the
    block, divided by its query rows, so that a row of the map sums to one. Blocks in the future are 0. Two passes, the
    log-sum-exp of each query first, so that nothing of size Q × K is stored. Float64 inputs are computed in float64.
    """
    if pool not in POOLS:
        raise ValueError(f"pool={pool} is not known; choose one of: {', '.join(POOLS)}")
    if kernel == "auto":
        kernel = "triton" if q.device.type == "cuda" and q.dtype != torch.float64 else "reference"
    if kernel not in KERNELS:
        raise ValueError(f"kernel={kernel} is not known; choose one of: auto, {', '.join(KERNELS)}")
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if kernel == "triton":
        if q_block not in TRITON_BLOCKS or k_block not in TRITON_BLOCKS:
            raise ValueError(
                f"block_map kernel=triton takes blocks of {TRITON_BLOCKS}, not {q_block} and {k_block}; use kernel=reference"
            )
        from kernels.block_map.triton_kernel import block_map_triton

        return block_map_triton(q, k, q_block=q_block, k_block=k_block, scale=scale, pool=pool)
    return block_map_reference(q, k, q_block=q_block, k_block=k_block, scale=scale, pool=pool)
