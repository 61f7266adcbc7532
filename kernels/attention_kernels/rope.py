"""Rotary position embedding, applied and undone (RoFormer, arXiv 2104.09864), in the rotate-half convention.

Only the first R of D elements rotate; the rest pass through. The two halves of the R elements turn by the same angles, so
tables are half as wide as what rotates: cos and sin [P, R/2]. Attention scaling is part of them. Maths in float32, or in
float64 where x is float64.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x [..., P, D] by cos and sin [P, R/2] -> [..., P, D] in float32."""
    half = cos.shape[-1]
    check_rotary(2 * half, x.shape[-1])
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    first, second, rest = x.to(wide).split([half, half, x.shape[-1] - 2 * half], dim=-1)
    cos, sin = cos.to(wide), sin.to(wide)
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)


def unrotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Undo `rotate`, attention scaling included: x [..., P, D], cos and sin [P, R/2] -> [..., P, D] in float32."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    cos, sin = cos.to(wide), sin.to(wide)
    norm = cos * cos + sin * sin  # the square of the attention scaling; 1 where there is none
    return rotate(x, cos / norm, -sin / norm)


def check_rotary(rotary: int, dim: int) -> None:
    """Raise ValueError unless `rotary` elements of heads of `dim` can rotate."""
    if rotary > dim or rotary % 2:
        raise ValueError(f"{rotary} rotary elements for heads of {dim}: must be even and at most as many")


def check_tables(cos: Tensor | None, sin: Tensor | None, length: int, dim: int) -> None:
    """Raise ValueError unless cos and sin are both absent, or float tables [length, R/2] for heads of `dim`."""
    if cos is None and sin is None:
        return
    if cos is None or sin is None:
        raise ValueError("cos and sin go together: give both tables or neither")
    if cos.ndim != 2 or cos.shape != sin.shape or cos.shape[0] != length:
        raise ValueError(f"cos {tuple(cos.shape)}, sin {tuple(sin.shape)}: expected [{length}, R/2] twice")
    check_rotary(2 * cos.shape[1], dim)


def kernel_tables(cos: Tensor | None, sin: Tensor | None, *, unread: Tensor) -> tuple[Tensor, Tensor, int]:
    """Return cos and sin as the Triton kernels read them, float32 with rows side by side, and their width R/2; where there are
    none, `unread` in their place and 0."""
    if cos is None or sin is None:
        return unread, unread, 0
    cos, sin = (t if t.stride(-1) == 1 and t.dtype == torch.float32 else t.float().contiguous() for t in (cos, sin))
    return cos, sin, cos.shape[1]
