"""What a gate learns from: queries and keys of every layer of a frozen model, and its true attention map."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from attention_kernels.block_map import block_map
from attention_kernels.dense import dense_attention, sliding_window_attention
from torch import Tensor, nn

from harness.core.errors import UserError
from methods.gates.gate import Gate
from methods.parts.base import Grid

NAME = "gate_capture"

Visitor = Callable[[int, Tensor, Tensor, float], None]
"""Called with (layer, q [B,Hq,N,D], k [B,Hkv,N,D], scale), post-RoPE, GQA un-repeated."""

_visitors: WeakKeyDictionary[nn.Module, Visitor] = WeakKeyDictionary()


class Capture:
    """Shows every attention layer's queries and keys to `visit`, for as long as the `with` block lasts.

    The model computes what it always does (dense attention). Layers with a sliding window are shown only where the
    text fits in the window: elsewhere there is nothing for a gate to choose.
    """

    def __init__(self, model: Any, visit: Visitor) -> None:
        self.model = model
        self.visit = visit
        self._previous: Any = None

    def __enter__(self) -> Capture:
        from transformers import AttentionInterface, AttentionMaskInterface

        AttentionInterface.register(NAME, _attention)
        AttentionMaskInterface.register(NAME, _no_mask)
        self._previous = self._set(NAME)
        self._modules = [m for m in self.model.modules() if isinstance(getattr(m, "layer_idx", None), int)]
        for module in self._modules:
            _visitors[module] = self.visit
        return self

    def __exit__(self, *_: object) -> None:
        self._set(self._previous)
        for module in self._modules:
            del _visitors[module]

    def _set(self, name: str) -> str:
        """Change the text decoder's attention; returns the one it had."""
        top = self.model.config
        text = top.get_text_config(decoder=True)
        before: str = text._attn_implementation
        parts = {key: name for key in top.sub_configs if getattr(top, key, None) is text}
        self.model.set_attn_implementation(name if text is top else parts)
        if text._attn_implementation != name:
            raise UserError(f"{type(self.model).__name__} does not use transformers' AttentionInterface: can't read it")
        return before

    @torch.no_grad()
    def run(self, tokens: Tensor) -> None:
        """One forward pass over tokens [B,N] int64 without padding; keeps nothing but what `visit` keeps."""
        self.model(input_ids=tokens, use_cache=False, logits_to_keep=1)


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: None, **kwargs: Any
) -> tuple[Tensor, None]:
    if kwargs.get("softcap") is not None or kwargs.get("s_aux") is not None:
        raise UserError(f"{type(module).__name__} has softcap or sinks in its attention: gates can't be trained")
    scale = float(kwargs.get("scaling") or query.shape[-1] ** -0.5)
    window = kwargs.get("sliding_window")
    if window is not None and key.shape[2] > window:
        out = sliding_window_attention(query, key, value, window=window, scale=scale)
    else:
        _visitors[module](int(getattr(module, "layer_idx", 0)), query, key, scale)
        out = dense_attention(query, key, value, scale=scale)
    return out.transpose(1, 2), None


def _no_mask(*_: Any, attention_mask: Tensor | None = None, **__: Any) -> None:
    if attention_mask is not None:
        raise UserError("gates learn from text without padding: give tokens only, no attention mask")


def gate_grid(gate: Gate, q: Tensor, k: Tensor) -> Grid:
    """The blocks of the gate's map of these queries, for the functions of kernels/."""
    return Grid(q_block=gate.q_block, k_block=gate.block_size, q_len=q.shape[2], k_len=k.shape[2])


def true_map(q: Tensor, k: Tensor, gate: Gate, *, scale: float, pool: str) -> Tensor:
    """The true attention as the gate is to know it: pooled over its blocks and heads, [B,H,Mq,Nk] float32."""
    found = block_map(q, k, q_block=gate.q_block, k_block=gate.block_size, scale=scale, pool=pool)
    return gate.truth(found, pool, k.shape[2])


def target_map(q: Tensor, k: Tensor, gate: Gate, *, scale: float, pool: str) -> Tensor:
    """What the gate's softmax is to match: the pooled attention map [B,H,Mq,Nk] float32, rows summing to 1."""
    truth = true_map(q, k, gate, scale=scale, pool=pool)
    return truth.div_(truth.sum(-1, keepdim=True).clamp(min=1e-9))
