"""What attention gets in each layer of a model, as a forward pass of a few tokens shows it: a config may say otherwise."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from harness.core.errors import UserError
from harness.models.attention_interface import attach, detach

TOKENS = 4
"""Tokens of the forward pass."""


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


class _Probe:
    """An AttentionRunner that notes what attention gets, and returns zeros."""

    full = True

    def __init__(self) -> None:
        self.shapes: dict[int, LayerShape] = {}
        self._keys: list[Tensor] = []  # held, so that no memory is used twice

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, scale: float, window: int | None) -> Tensor:
        """Note a layer's heads and its window."""
        shares = any(k.data_ptr() == other.data_ptr() for other in self._keys)
        self._keys.append(k)
        self.shapes.setdefault(layer, LayerShape(layer, q.shape[1], k.shape[1], q.shape[3], window, shares))
        return torch.zeros_like(q)

    def decode(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, scale: float, window: int | None, key_mask: Tensor | None
    ) -> Tensor:
        """Do as `attend` does."""
        return self.attend(layer, q, k, v, scale=scale, window=window)


@torch.inference_mode()
def probe_layers(model: Any, name: str) -> tuple[LayerShape, ...]:
    """Return the attention of each layer of a transformers model, in order. name: of the model, for messages.

    Raises UserError where the model can't be measured at all: its attention is of another kind (see `attach`), or it does not
    run.
    """
    probe = _Probe()
    weight = model.get_input_embeddings().weight
    ids = torch.arange(TOKENS, device=weight.device)[None] % weight.shape[0]
    previous = attach(model, probe, name)
    try:
        model(input_ids=ids, use_cache=False)
    except UserError:
        raise
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError, NotImplementedError, AssertionError) as error:
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
        reason = f"{type(error).__name__}: {first}"
        raise UserError(f"{name}: {type(model).__name__} does not run on {TOKENS} tokens ({reason})") from error
    finally:
        detach(model, probe, previous)
    if not probe.shapes:
        raise UserError(f"{name}: no layer of {type(model).__name__} calls transformers' AttentionInterface: not supported")
    return tuple(shape for _, shape in sorted(probe.shapes.items()))


def global_shapes(shapes: Iterable[LayerShape]) -> list[LayerShape]:
    """Return the layers that attend to everything, or all where every layer has a window: those that methods are for."""
    shapes = list(shapes)
    return [shape for shape in shapes if shape.window is None] or shapes


def column_bytes(shapes: Iterable[LayerShape], itemsize: int) -> int:
    """Return the bytes that the keys and values of one token take in a cache, by the bytes of an element."""
    return sum(2 * shape.kv_heads * shape.head_dim * itemsize for shape in shapes if not shape.shares_keys)
