"""The selection of a method on a shape without a model. Weights are drawn at random: the time does not depend on them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

import methods
from harness.core.errors import UserError
from harness.measure.kernel_speed.cases import Shape
from harness.measure.kernel_speed.options import build_with_standard_knobs
from methods.gates.weights import gate_state
from methods.parts.base import LayerInputs, Method

DRAWN = "weights drawn at random: time only"
"""What a row says of such a selection."""


def draws_weights(name: str) -> bool:
    """Return whether a method has weights, which must be drawn for its selection."""
    return methods.get(name).weights is not None


@dataclass(frozen=True)
class PlainRope:
    """The rotary embedding of a whole head, at the base frequency of Llama 3."""

    head_dim: int
    base: float = 500_000.0

    def cos_sin(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return cos, sin [P,D] float32 of positions [P] int64."""
        cos, sin = self._waves(positions)
        return torch.cat((cos, cos), dim=-1), torch.cat((sin, sin), dim=-1)

    @lru_cache(maxsize=2)  # noqa: B019  (no instance is kept alive that matters: it is two numbers)
    def table(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return cos, sin [length,D/2] float32 of positions 0 to length - 1; held for the next call, as a model's are."""
        with torch.inference_mode(False):
            return self._waves(torch.arange(length, device=device))

    def _waves(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        powers = torch.arange(0, self.head_dim, 2, device=positions.device, dtype=torch.float32) / self.head_dim
        angles = positions[:, None].float() * self.base**-powers
        return angles.cos(), angles.sin()


def selector(
    name: str, block: int, sparsity: float, shared: bool, last: int, shape: Shape, *, seed: int, device: torch.device
) -> Method:
    """Return the method `name`, ready to select at layer 0 of the shape. Raises ValueError where it can't."""
    method = build_with_standard_knobs(name, block, sparsity, shared, last)
    if method.weights_name() is not None:
        if method.gate is None:
            raise UserError(f"method {name} needs weights that nothing here can draw: name another in job.selections")
        gate = method.gate(shape.heads, shape.kv_heads, shape.head_dim, block_size=block)
        gate.reset_parameters(torch.Generator().manual_seed(seed))
        sizes = {"heads": shape.heads, "kv_heads": shape.kv_heads, "head_dim": shape.head_dim}
        method.load(gate_state([gate]), layers=1, **sizes)
    return method.to(device)


def plain_layer_inputs(method: Method, q: Tensor, k: Tensor, scale: float) -> LayerInputs:
    """Return what the method sees of q [B,Hq,Q,D] and k [B,Hkv,K,D] as of layer 0, with a PlainRope where it needs one."""
    return LayerInputs(q=q, k=k, layer=0, scale=scale, rope=PlainRope(q.shape[-1]) if method.needs_rope else None)
