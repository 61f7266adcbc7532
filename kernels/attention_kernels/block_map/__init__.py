"""The true attention map, pooled over blocks: what learned gates are trained on and what the oracle selects by."""

from __future__ import annotations

import torch
from torch import Tensor

from attention_kernels.backends import KERNELS, resolve_backend
from attention_kernels.block_map.reference import block_map_reference, log_sum_exp_reference
from attention_kernels.block_map.tuning import MOST_DIM

__all__ = ["KERNELS", "POOLS", "block_map", "log_sum_exp"]

POOLS = ("max", "mass", "mean")
TRITON_BLOCKS = (1, 2, 4, 8, 16, 32, 64, 128)


def block_map(
    q: Tensor,
    k: Tensor,
    *,
    q_block: int,
    k_block: int,
    scale: float | None = None,
    pool: str = "max",
    kernel: str = "auto",
    lse: Tensor | None = None,
) -> Tensor:
    """Return the pooled causal attention probabilities of q [B, Hq, Q, D] over k [B, Hkv, K, D]: float32 [B, Hq, Mq, Nk].

    pool "max": the largest probability inside the block (SeerAttention, arXiv 2410.13276, §3.2); "mass": the sum over the
    block, divided by its query rows, so that a row of the map sums to one; "mean": the sum over the block, divided by the
    pairs of a query and a key at or before it that lie in the block, the last blocks' missing tokens not counted. Where the
    whole block is visible that is mass / k_block. Blocks in the future are 0.

    Two passes, the log-sum-exp of each query first, so that nothing of size Q × K is stored; a dense forward that returns it
    (natural logarithm, float32 [B, Hq, Q], of the scaled scores, as FlashAttention does) or `log_sum_exp` saves the first as
    `lse`. Float64 inputs are computed in float64. Triton takes blocks of powers of two up to 128 and head dims up to 2048.
    Raises ValueError for shapes that don't fit or a kernel that can't run.
    """
    if pool not in POOLS:
        raise ValueError(f"pool={pool} is not known; choose one of: {', '.join(POOLS)}")
    kernel, scale = _resolve(q, k, kernel, scale)
    if lse is not None and (lse.shape != q.shape[:3] or lse.dtype not in (torch.float32, torch.float64)):
        raise ValueError(f"lse is {lse.dtype} {tuple(lse.shape)}; expected float32 [B, Hq, Q] = {tuple(q.shape[:3])}")
    if kernel == "triton":
        if q_block not in TRITON_BLOCKS or k_block not in TRITON_BLOCKS:
            raise ValueError(
                f"block_map kernel=triton takes blocks of {TRITON_BLOCKS}, not {q_block} and {k_block}; use kernel=reference"
            )
        from attention_kernels.block_map.triton_kernel import block_map_triton  # imported late: needs triton

        run = block_map_triton
    else:
        run = block_map_reference
    out = run(q, k, q_block=q_block, k_block=k_block, scale=scale, largest=pool == "max", lse=lse)
    if pool == "mass":
        out.div_(_queries(q.shape[2], q_block, q.device)[:, None])
    elif pool == "mean":
        out.div_(_pairs(q.shape[2], k.shape[2], q_block, k_block, q.device).clamp(min=1))
    return out


def log_sum_exp(q: Tensor, k: Tensor, *, scale: float | None = None, kernel: str = "auto") -> Tensor:
    """Return the natural log-sum-exp of each query's scaled causal scores, float32 [B, Hq, Q]: the first pass of `block_map`,
    to be shared where one layer's map is pooled more than once."""
    kernel, scale = _resolve(q, k, kernel, scale)
    if kernel == "triton":
        from attention_kernels.block_map.triton_kernel import log_sum_exp_triton  # imported late: needs triton

        return log_sum_exp_triton(q, k, scale=scale)
    return log_sum_exp_reference(q, k, scale=scale)


def _resolve(q: Tensor, k: Tensor, kernel: str, scale: float | None) -> tuple[str, float]:
    """Return the name of the kernel that will run and the scale. Raises ValueError unless q [B, Hq, Q, D] and k
    [B, Hkv, K, D] go together."""
    if q.ndim != 4 or k.ndim != 4 or q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3] or q.dtype != k.dtype:
        raise ValueError(f"q {q.dtype} {tuple(q.shape)}, k {k.dtype} {tuple(k.shape)}: expected [B,Hq,Q,D] and [B,Hkv,K,D]")
    if q.shape[1] % k.shape[1]:
        raise ValueError(f"{q.shape[1]} query heads are no multiple of {k.shape[1]} KV heads")
    if q.shape[2] > k.shape[2]:
        raise ValueError(f"{q.shape[2]} queries for {k.shape[2]} keys: queries are the last tokens of the keys")
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if not scale > 0:
        raise ValueError(f"scale={scale}: must be above 0")
    kernel = resolve_backend(kernel, q)
    if kernel == "triton" and q.shape[-1] > MOST_DIM:
        raise ValueError(f"kernel=triton takes head dims up to {MOST_DIM}, not {q.shape[-1]}; use kernel=reference")
    return kernel, scale


def _queries(q_len: int, q_block: int, device: torch.device) -> Tensor:
    """Return how many queries each query block has, int64 [Mq]."""
    return (q_len - torch.arange(0, q_len, q_block, device=device)).clamp(max=q_block)


def _pairs(q_len: int, k_len: int, q_block: int, k_block: int, device: torch.device) -> Tensor:
    """Return how many pairs of a query and a key are visible in each block, int64 [Mq, Nk]."""
    start = torch.arange(0, k_len, k_block, device=device)
    keys = (k_len - start).clamp(max=k_block)
    # query t of a block sees clamp(seen + t, 0, keys) of a block's keys; the sum over t is a difference of two sums
    seen = (torch.arange(0, q_len, q_block, device=device) + (k_len - q_len))[:, None] - start + 1

    def summed(x: Tensor) -> Tensor:
        """Return the sum of clamp(i, 0, keys) over i <= x."""
        rising = torch.minimum(x.clamp(min=0), keys)
        return rising * (rising + 1) // 2 + (x - keys).clamp(min=0) * keys

    return summed(seen + _queries(q_len, q_block, device)[:, None] - 1) - summed(seen - 1)
