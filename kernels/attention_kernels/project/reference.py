"""The linear map and RoPE of pooled vectors in plain PyTorch: any device, differentiable."""

from __future__ import annotations

import torch
from torch import Tensor

from attention_kernels.rope import rotate


def project_reference(x: Tensor, weight: Tensor | None, cos: Tensor | None, sin: Tensor | None) -> Tensor:
    """Run `attention_kernels.project.project` in plain PyTorch."""
    if weight is not None:
        x = (x.unsqueeze(2) @ weight.unflatten(0, (x.shape[1], -1))).flatten(1, 2)
    if cos is None or sin is None:
        return x if x.dtype == torch.float64 else x.float()
    return rotate(x, cos, sin)
