"""One step's block scores in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def step_scores_reference(q: Tensor, keys: Tensor, scale: float) -> Tensor:
    """Run `attention_kernels.step_scores.step_scores` in plain PyTorch."""
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    rows = q.to(wide).unflatten(1, (keys.shape[1], -1))  # [B,Hk,G,E]
    return (rows @ keys.to(wide).mT).flatten(1, 2) * scale
