"""DuoAttention's offline search: how much each KV head loses when it attends to sinks and a window only."""

from __future__ import annotations

from typing import Any

import torch
from attention_kernels.dense import dense_attention
from attention_kernels.sparse_attention import sparse_attention
from torch import Tensor

from methods.parts.base import LayerInputs
from methods.streaming_llm import StreamingLLM


class StreamingSearch:
    """Measures how much each KV head needs the whole context: the error of its query heads' output when it streams,
    ‖streaming - dense‖ over the norm of the dense output of all heads of the layer. Nothing is trained; the paper learns these
    numbers."""

    def __init__(self, layers: int, kv_heads: int, streaming: StreamingLLM) -> None:
        self.streaming = streaming
        self.errors = torch.zeros(layers, kv_heads, dtype=torch.float64)
        self.prompts = torch.zeros(layers, dtype=torch.int64)

    def observe(self, x: LayerInputs, v: Tensor) -> None:
        """Take in one layer of one prompt, v [B,Hkv,K,D]."""
        dense = dense_attention(x.q, x.k, v, scale=x.scale)
        out = sparse_attention(x.q, x.k, v, self.streaming.select(x), scale=x.scale)
        errors = (out - dense).double().square().sum((0, 2, 3)).unflatten(0, (x.k.shape[1], -1)).sum(-1)
        self.errors[x.layer] += (errors / dense.double().square().sum()).sqrt().cpu()
        self.prompts[x.layer] += 1

    def result(self) -> dict[str, Any]:
        """Return `heads` [layer][KV head], means over prompts, and the `sinks` and `recent` tokens that were tried.

        A layer never seen, of a sliding window, has an empty list. Raises ValueError where no layer was seen.
        """
        if not bool(self.prompts.any()):
            raise ValueError("no layer was seen: their attention has a sliding window, or no prompt was given")
        means = (self.errors / self.prompts.clamp(min=1)[:, None]).tolist()
        rounded = [
            [round(number, 5) for number in layer] if seen else [] for layer, seen in zip(means, self.prompts, strict=True)
        ]
        return {"heads": rounded, "sinks": self.streaming.sinks, "recent": self.streaming.window}
