"""Pooling over blocks of tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Pool = Literal["mean", "max", "min"]


def _mean(x: Tensor) -> Tensor:
    # accumulates in float32 without a float32 copy of x
    return x.mean(-2, dtype=_wide(x))


def _max(x: Tensor) -> Tensor:
    return x.amax(-2).to(_wide(x))


def _min(x: Tensor) -> Tensor:
    return x.amin(-2).to(_wide(x))


_POOLS: dict[Pool, Callable[[Tensor], Tensor]] = {"mean": _mean, "max": _max, "min": _min}


def pool_blocks(x: Tensor, block: int, how: Pool) -> Tensor:
    """x [...,P,D] -> [...,ceil(P/block),D] in float32 (float64 stays); a partial last block pools the tokens it has."""
    reduce = _POOLS[how]
    whole = x.shape[-2] // block * block
    parts = [reduce(x[..., :whole, :].unflatten(-2, (-1, block)))] if whole else []
    if whole < x.shape[-2]:
        parts.append(reduce(x[..., whole:, :]).unsqueeze(-2))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-2)


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32
