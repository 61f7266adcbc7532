"""The interface through which methods and gates read a layer's rotary embedding; harness.models.rope implements it."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Rope(Protocol):
    """The rotary embedding of one layer. R elements of a head are rotated; the two halves of them turn by the same angles."""

    def cos_sin(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return cos and sin [P,R] float32 at positions [P] int64: both halves, the model's attention scaling multiplied in."""

    def table(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return cos and sin [length,R/2] float32 of positions 0 to length - 1, one of the equal halves.

        The tables are kept for the next call and shared by layers that rotate alike: read them only.
        """
