"""What stands in for attention while a model is looked at: it notes what each layer gives it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LayerShape:
    """The attention of one layer: query heads, KV heads, elements of a head, and the window of keys that a query sees (None:
    all up to it). shares_keys: with a layer before it, so that it has none of its own in the cache."""

    layer: int
    heads: int
    kv_heads: int
    head_dim: int
    window: int | None = None
    shares_keys: bool = False

    @property
    def heads_text(self) -> str:
        """Return its heads for a message."""
        return f"{self.heads} query and {self.kv_heads} KV heads of {self.head_dim} elements"


class LayerRecorder:
    """An AttentionRunner that notes what attention gets, and returns zeros. seen: the queries of each call, and what the model
    made of them in the end."""

    in_prompt = True

    def __init__(self) -> None:
        self.shapes: dict[int, LayerShape] = {}
        self.seen: list[Tensor] = []
        self._keys: list[Tensor] = []  # held, so that no memory is used twice

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, scale: float, window: int | None) -> Tensor:
        """Note a layer's heads and its window."""
        shares = any(k.data_ptr() == other.data_ptr() for other in self._keys)
        self._keys.append(k)
        self.seen.append(q)
        self.shapes.setdefault(layer, LayerShape(layer, q.shape[1], k.shape[1], q.shape[3], window, shares))
        return torch.zeros_like(q)

    def decode(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, scale: float, window: int | None, key_mask: Tensor | None
    ) -> Tensor:
        """Do as `attend` does."""
        return self.attend(layer, q, k, v, scale=scale, window=window)
