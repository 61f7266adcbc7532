"""The lengths at which a model's RoPE takes other frequencies: LongRoPE's switch, and where dynamic NTK begins."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

LONGROPE = "longrope"
DYNAMIC = "dynamic"
"""The kinds of RoPE whose frequencies transformers takes by the length (its `dynamic_rope_update`): every type with "dynamic"
in its name has others for every length past the switch, longrope has one set up to it and one past it."""


def switch_lengths(model: Any) -> tuple[int, ...]:
    """Return the lengths in tokens, ascending, up to which a sequence has the frequencies of a short one, and past which it has
    others; empty where the frequencies don't depend on the length. model: of transformers, or its decoder."""
    lengths = {length for rotary in rotary_modules(model) for _, length in switches(rotary).values()}
    return tuple(sorted(lengths))


def rotary_modules(model: Any) -> Iterator[nn.Module]:
    """Yield the modules of a model's text decoder that make its cos and sin."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    for module in decoder.modules():
        if hasattr(module, "rope_type") and getattr(module, "config", None) is not None:
            yield module


def switches(rotary: nn.Module) -> dict[str | None, tuple[str, int]]:
    """Return the kind of RoPE, LONGROPE or DYNAMIC, and its switch, by type of layers; None where all layers share one."""
    by_type: dict[str | None, tuple[str, int]] = {}
    types, parameters = rotary.rope_type, rotary.config.rope_parameters  # type: ignore[union-attr]
    nested = isinstance(types, dict)
    for layer_type, rope_type in types.items() if nested else [(None, types)]:
        if DYNAMIC in rope_type:
            by_type[layer_type] = DYNAMIC, int(rotary.original_max_seq_len)  # type: ignore[arg-type]
        elif rope_type == LONGROPE:
            settings = parameters[layer_type] if nested else parameters
            by_type[layer_type] = LONGROPE, int(settings["original_max_position_embeddings"])
    return by_type
