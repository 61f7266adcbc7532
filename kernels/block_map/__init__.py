"""The true attention map, pooled over blocks: what learned gates are trained on and what the oracle selects by."""

from __future__ import annotations

from torch import Tensor

from kernels.block_index import grid_shape
from kernels.block_map.reference import block_map_reference
from kernels.shapes import check_qk, softmax_scale
from kernels.triton_support import choose

__all__ = ["KERNELS", "POOLS", "block_map"]

KERNELS = ("reference", "triton")
POOLS = ("max", "mass")


def block_map(
    q: Tensor,
    k: Tensor,
    *,
    q_block: int,
    k_block: int,
    scale: float | None = None,
    pool: str = "max",
    kernel: str = "auto",
) -> Tensor:
    """Pooled causal attention probabilities of q [B, Hq, Q, D] over k [B, Hkv, K, D]: float32 [B, Hq, Mq, Nk].

    pool "max": the largest probability inside the block (SeerAttention, arXiv 2410.13276, §3.2); "mass": the sum over
    the block, divided by its query rows, so that a row of the map sums to one. Blocks in the future are 0. Two passes,
    the log-sum-exp of each query first, so that nothing of size Q × K is stored. kernel "auto" is triton on CUDA,
    reference elsewhere. Float64 inputs are computed in float64, by the reference. Raises ValueError for inputs that
    don't go together, and where the kernel can't run.
    """
    if pool not in POOLS:
        raise ValueError(f"pool={pool} is not known; choose one of: {', '.join(POOLS)}")
    check_qk(q, k)
    grid_shape(q.shape[2], k.shape[2], q_block, k_block)
    scale = softmax_scale(scale, q.shape[3])
    name = choose(
        kernel, KERNELS, device=q.device, dtype=q.dtype, head_dim=q.shape[3], q_block=q_block, k_block=k_block
    )
    if name == "triton":
        from kernels.block_map.triton_kernel import block_map_triton  # imported late: needs triton

        return block_map_triton(q, k, q_block=q_block, k_block=k_block, scale=scale, pool=pool)
    return block_map_reference(q, k, q_block=q_block, k_block=k_block, scale=scale, pool=pool)
