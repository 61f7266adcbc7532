"""Rotary position embedding, applied and undone (RoFormer, arXiv 2104.09864), in the rotate-half convention.

Only the first R of D elements rotate, R being the width of cos and sin; the rest pass through. Maths in float32, or in
float64 where x is float64.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rope_apply(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [...,P,D], cos and sin [P,R] -> x rotated [...,P,D] in float32."""
    return _rotate(x, cos, sin)


def rope_undo(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The inverse of rope_apply, attention scaling included: x [...,P,D], cos and sin [P,R] -> [...,P,D] in float32."""
    cos, sin = cos.to(_wide(x)), sin.to(_wide(x))
    norm = cos * cos + sin * sin  # the square of the attention scaling; 1 where there is none
    return _rotate(x, cos / norm, -sin / norm)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    rotary = cos.shape[-1]
    if rotary > x.shape[-1] or rotary % 2:
        raise ValueError(f"{rotary} rotary elements for heads of {x.shape[-1]}: must be even and at most as many")
    wide = _wide(x)
    half = rotary // 2
    first, second, rest = x.to(wide).split([half, half, x.shape[-1] - rotary], dim=-1)
    # cos and sin of both halves are equal in rotate-half RoPE; each half uses its own columns all the same
    c1, c2 = cos.to(wide).split(half, dim=-1)
    s1, s2 = sin.to(wide).split(half, dim=-1)
    return torch.cat((first * c1 - second * s1, second * c2 + first * s2, rest), dim=-1)


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32
