"""The attention of a model while it is fine-tuned: what a method chooses, and the loss of the gates beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from attention_kernels.dense import dense_attention, sliding_window_attention
from attention_kernels.sparse_attention import attend, resolve_kernel
from torch import Tensor

from harness.core.errors import UserError
from harness.models.attention_interface import Implementation, attach, detach
from harness.models.loading import LoadedModel
from harness.models.rope import LayerRopes
from methods.parts.base import LayerInputs, Method

Visitor = Callable[[int, Tensor, Tensor, float, Tensor | None], None]
"""Called with (layer, q [B,Hq,N,D], k [B,Hkv,N,D], scale, None), cut off from the model's graph."""


class TrainingAttention:
    """Attends by `method` (None: densely) with a gradient, for as long as the `with` block lasts: an AttentionRunner.

    Blocks are chosen of queries and keys without a gradient. `visit`, where there is one, is shown them, detached: what it
    learns of them does not reach the model. kernel, dense_kernel: names of kernels/, or "auto", which takes those with a
    backward pass.
    """

    in_prompt = True

    def __init__(self, loaded: LoadedModel, visit: Visitor | None, *, kernel: str = "auto", dense_kernel: str = "auto") -> None:
        self.loaded, self.visit = loaded, visit
        self.kernel, self.dense_kernel = kernel, dense_kernel
        self.method: Method | None = None
        self._ropes = LayerRopes(loaded.model)
        self._densities: list[Tensor] = []
        self._previous: Implementation | None = None
        self._hook: Any = None

    def __enter__(self) -> TrainingAttention:
        self._previous = attach(self.loaded.model, self, self.loaded.name)
        self._hook = self._ropes.follow()
        return self

    def __exit__(self, *_: object) -> None:
        if self._hook is not None:
            self._hook.remove()
        assert self._previous is not None
        detach(self.loaded.model, self, self._previous)

    def take_density(self) -> Tensor:
        """Return the density since the last call, the mean over the layers that attend to everything, float32 [], and forget
        it. Raises UserError where there was no such layer."""
        if not self._densities:
            raise UserError(f"no layer of {self.loaded.name} attends to the whole text: take longer windows or shorter rows")
        density = torch.stack(self._densities).mean()
        self._densities.clear()
        return density

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, scale: float, window: int | None) -> Tensor:
        """Return the attention [B,Hq,N,D] of one layer over whole texts."""
        q, k = q.to(v.dtype), k.to(v.dtype)  # autocast leaves those that a norm has made in float32
        if window is not None and k.shape[2] > window:
            return sliding_window_attention(q, k, v, window=window, scale=scale)
        with torch.autocast(q.device.type, enabled=False):  # gates and estimates compute in float32
            if self.visit is not None:
                self.visit(layer, q.detach(), k.detach(), scale, None)
            return self._attend(layer, q, k, v, scale)

    def _attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        choice = None
        if self.method is not None:
            with torch.no_grad():
                rope = self._ropes[layer] if self.method.needs_rope else None
                choice = self.method.select(LayerInputs(q=q.detach(), k=k.detach(), layer=layer, scale=scale, rope=rope))
        if choice is None:
            self._densities.append(torch.ones((), device=q.device))
            return dense_attention(q, k, v, scale=scale, kernel=self.dense_kernel)
        site: dict[str, Any] = {"device": q.device, "dtype": q.dtype, "head_dim": q.shape[3], "heads": q.shape[1]}
        kernel = resolve_kernel(self.kernel, choice, grad=torch.is_grad_enabled(), **site)
        out, index = attend(q, k, v, choice, scale=scale, kernel=kernel)
        with torch.no_grad():
            self._densities.append(index.density().mean())
        return out

    def decode(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, scale: float, window: int | None, key_mask: Tensor | None
    ) -> Tensor:
        """Raise UserError: there is no text to be learnt from in one token."""
        raise UserError("a model is fine-tuned on whole texts: give all tokens at once")
