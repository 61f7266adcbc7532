"""Where transformers' own generate drops the cache of a growing sequence: some models prefill all of it anew past a switch."""

from __future__ import annotations

from typing import Any

import torch
from transformers import DynamicCache

from harness.models.rope_lengths import switch_lengths


class CacheOf(DynamicCache):
    """A cache that says it holds `tokens` tokens."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.tokens = tokens

    def __len__(self) -> int:
        return 1

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.tokens


def recomputed_lengths(model: Any) -> tuple[int, ...]:
    """Return the lengths at which a model, given one token more, wants the whole sequence again instead of its cache.

    The model says so itself, in what it prepares for transformers' generate; asked only where its RoPE changes with the length.
    """
    return tuple(length for length in switch_lengths(model) if _drops_cache(model, length))


def _drops_cache(model: Any, length: int) -> bool:
    ids = torch.zeros(1, length + 1, dtype=torch.int64, device=model.device)
    inputs = model.prepare_inputs_for_generation(
        ids, past_key_values=CacheOf(length), attention_mask=torch.ones_like(ids), use_cache=True, next_sequence_length=1
    )
    return inputs.get("past_key_values") is None
