"""Rotary embedding with tables of full width, cos and sin [P,R], as transformers makes them (maths: attention_kernels.rope)."""

from __future__ import annotations

from attention_kernels.rope import check_rotary, rotate, unrotate
from torch import Tensor


def rope_apply(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return x [...,P,D] rotated by cos and sin [P,R], halves duplicated: [...,P,D] float32 (float64 stays)."""
    check_rotary(cos.shape[-1], x.shape[-1])
    return rotate(x, first_half(cos), first_half(sin))


def rope_undo(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return the inverse of `rope_apply`, attention scaling included: [...,P,D] float32 (float64 stays)."""
    check_rotary(cos.shape[-1], x.shape[-1])
    return unrotate(x, first_half(cos), first_half(sin))


def first_half(table: Tensor) -> Tensor:
    """Return a table [P,R] as [P,R/2]: in rotate-half RoPE both halves of the elements turn by the same angles."""
    return table[..., : table.shape[-1] // 2]
