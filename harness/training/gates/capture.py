"""The queries and keys of every layer of a frozen model, shown while its forward pass runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from attention_kernels.dense import dense_attention_and_lse, sliding_window_attention
from torch import Tensor

from harness.core import devices
from harness.core.errors import UserError
from harness.models.attention_interface import Implementation, attach, detach

Visitor = Callable[[int, Tensor, Tensor, float, Tensor | None], None]
"""Called with (layer, q [B,Hq,N,D], k [B,Hkv,N,D], scale, lse), post-RoPE, GQA un-repeated; lse: log-sum-exp of the queries'
scores, float32 [B,Hq,N], where the layer's dense kernel returns it."""


class Capture:
    """Shows every attention layer's queries and keys to `visit`, for as long as the `with` block lasts: an AttentionRunner.

    The model computes what it always does (dense attention). Layers with a sliding window are shown only where the
    text fits in the window: elsewhere there is nothing for a gate to choose.
    """

    in_prompt = True

    def __init__(self, model: Any, visit: Visitor) -> None:
        self.model = model
        self.visit = visit
        self._previous: Implementation | None = None

    def __enter__(self) -> Capture:
        self._previous = attach(self.model, self, type(self.model).__name__)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._previous is not None
        detach(self.model, self, self._previous)

    @torch.no_grad()
    def run(self, tokens: Tensor) -> None:
        """Run one forward pass over tokens [B,N] int64 without padding; nothing of it stays but what `visit` stores."""
        # where transformers may not wait for the device it takes positions for those of packed texts, unless given a mask
        mask = {"attention_mask": torch.ones_like(tokens)} if devices.is_capturing() else {}
        self.model(input_ids=tokens, use_cache=False, logits_to_keep=1, **mask)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, scale: float, window: int | None) -> Tensor:
        """Show a layer, and return its dense attention."""
        if window is not None and k.shape[2] > window:
            return sliding_window_attention(q, k, v, window=window, scale=scale)
        out, lse = dense_attention_and_lse(q, k, v, scale=scale)
        self.visit(layer, q, k, scale, lse)
        return out

    def decode(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, scale: float, window: int | None, key_mask: Tensor | None
    ) -> Tensor:
        """Raise UserError: there is no text to be learnt from in one token."""
        raise UserError("gates learn from whole texts: give all tokens at once")
