"""Muon (Jordan et al. 2024) with the Newton–Schulz step batched over matrices of one shape.

`torch.optim.Muon` gives the same update one matrix at a time; for a model of many small matrices its launches cost more
than the whole forward and backward pass. A test holds the two together.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalise(grad: torch.Tensor, steps: int = 5, eps: float = 1e-7) -> torch.Tensor:
    """Return `grad` [N, R, C] with the singular values of each matrix pushed towards 1, in bf16 (Newton–Schulz)."""
    a, b, c = COEFFICIENTS
    x = grad.bfloat16()
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class BatchedMuon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised, scaled to the update size of AdamW (0.2 · sqrt(larger side)), decoupled decay."""

    def __init__(
        self, params: Iterable[torch.nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        by_shape: dict[torch.Size, list[torch.nn.Parameter]] = {}
        for param in params:
            by_shape.setdefault(param.shape, []).append(param)
        groups = [{"params": same_shape} for same_shape in by_shape.values()]
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update the matrices from their gradients, all of one shape at once."""
        for group in self.param_groups:
            params: list[torch.Tensor] = group["params"]
            grads = torch.stack([p.grad for p in params])  # type: ignore[misc]
            state = self.state[params[0]]
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(grads)
            state["momentum"].lerp_(grads, 1 - group["momentum"])
            update = orthogonalise(grads.lerp_(state["momentum"], group["momentum"]))
            scale = 0.2 * max(params[0].shape) ** 0.5
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(params, list(update.to(params[0].dtype).unbind()), alpha=-group["lr"] * scale)
