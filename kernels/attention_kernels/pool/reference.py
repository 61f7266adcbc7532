"""Block pooling in plain PyTorch, on any device and in any floating type."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from attention_kernels.rope import unrotate

CHUNK_ELEMENTS = 1 << 24
"""Elements whose RoPE is undone at once: bounds the float32 copies of long prompts at 64 MiB each."""


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _mean(x: Tensor) -> Tensor:
    # accumulates in float32 without a float32 copy of x
    return x.mean(-2, dtype=_wide(x))


def _max(x: Tensor) -> Tensor:
    return x.amax(-2).to(_wide(x))


def _min(x: Tensor) -> Tensor:
    return x.amin(-2).to(_wide(x))


_POOLS: dict[str, Callable[[Tensor], Tensor]] = {"mean": _mean, "max": _max, "min": _min}


def pool_one(x: Tensor, block: int, how: str) -> Tensor:
    """Pool x [..., P, D] -> [..., ceil(P/block), D] in float32 (float64 stays); a partial last block pools the tokens it
    has. Raises ValueError for another `how` than mean, max and min, no token, or a block of none."""
    if how not in _POOLS:
        raise ValueError(f"how={how}: must be one of {', '.join(_POOLS)}")
    if x.ndim < 2 or x.shape[-2] < 1:
        raise ValueError(f"x has shape {tuple(x.shape)}: expected [...,P,D] with at least one token")
    if block < 1:
        raise ValueError(f"block={block}: must be at least 1 token")
    reduce = _POOLS[how]
    full_blocks = x.shape[-2] // block * block
    parts = [reduce(x[..., :full_blocks, :].unflatten(-2, (-1, block)))] if full_blocks else []
    if full_blocks < x.shape[-2]:
        parts.append(reduce(x[..., full_blocks:, :]).unsqueeze(-2))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-2)


def pool_reference(x: Tensor, block: int, how: Sequence[str], cos: Tensor | None, sin: Tensor | None) -> Tensor:
    """Run `attention_kernels.pool.pool` in plain PyTorch."""
    if cos is None or sin is None:
        return torch.cat([pool_one(x, block, way) for way in how], dim=-1) if len(how) > 1 else pool_one(x, block, how[0])
    step = max(1, CHUNK_ELEMENTS // (x[:, :, 0].numel() * block)) * block
    parts = []
    for start in range(0, x.shape[2], step):
        part = slice(start, start + step)
        plain = unrotate(x[:, :, part], cos[part], sin[part])
        parts.append(torch.cat([pool_one(plain, block, way) for way in how], dim=-1))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
