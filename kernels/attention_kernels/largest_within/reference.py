"""The search for the smallest entry that is kept, in plain PyTorch: any device, any size."""

from __future__ import annotations

import torch
from torch import Tensor


def largest_within_reference(probs: Tensor, mass: float) -> Tensor:
    """Run `attention_kernels.largest_within.largest_within` in plain PyTorch: the map is read once for each bit, which is
    cheaper than sorting it and needs no room."""
    double = probs.dtype == torch.float64
    bits = probs.view(torch.int64 if double else torch.int32)
    # the largest number whose entries and those above sum to too much; -1: none
    too_low = torch.full((*probs.shape[:2], 1, 1), -1, dtype=bits.dtype, device=probs.device)
    for bit in range(61 if double else 29, -1, -1):  # that above is set in numbers from 2 on
        middle = too_low + (1 << bit)
        fits = torch.where(bits >= middle, probs, 0).sum((-2, -1), keepdim=True) <= mass
        too_low = torch.where(fits, too_low, middle)
    return bits > too_low
