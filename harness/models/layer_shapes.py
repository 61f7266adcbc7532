"""What attention gets in each layer of a model, as a forward pass of a few tokens shows it: a config may say otherwise."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from harness.core.errors import UserError
from harness.models.attention_interface import attach, detach
from harness.models.layer_recorder import LayerRecorder, LayerShape

__all__ = ["LayerShape", "column_bytes", "global_shapes", "probe_layers"]

TOKENS = 4
"""Tokens of the forward pass."""
TOKEN = 3
"""The token that is at all of them: none that is often special."""
NOISE = 1e-2
"""How much rows of the same token may differ, relative to their norm, where positions are of no effect."""


@torch.inference_mode()
def probe_layers(model: Any, name: str) -> tuple[LayerShape, ...]:
    """Return the attention of each layer of a transformers model, in order. name: of the model, for messages.

    Raises UserError where the model can't be measured at all: its attention is of another kind (see `attach`), it does not run,
    or it does not count its positions from 0, as decoding in a batch does.
    """
    positions = torch.arange(TOKENS, device=model.get_input_embeddings().weight.device)[None]
    ids = torch.full_like(positions, TOKEN)
    probe = _run(model, name, input_ids=ids)
    if not probe.shapes:
        raise UserError(f"{name}: no layer of {type(model).__name__} calls transformers' AttentionInterface: not supported")
    shifted = probe if ids.is_meta else _run(model, name, input_ids=ids, position_ids=positions + 1)
    if not ids.is_meta and not all(_follows(one, other) for one, other in zip(probe.seen, shifted.seen, strict=True)):
        raise UserError(
            f"{name}: {type(model).__name__} does not take position_ids that count from 0, as decoding in a batch gives them: "
            "not supported"
        )
    shapes = tuple(shape for _, shape in sorted(probe.shapes.items()))
    _check_cache(model, name, shapes)
    return shapes


def _check_cache(model: Any, name: str, shapes: Iterable[LayerShape]) -> None:
    """Raise UserError where the cache that transformers makes for a model forgets keys that a layer's mask shows."""
    from transformers import DynamicCache

    try:
        layers = DynamicCache(config=model.config).layers
    except Exception as error:  # of a config that has not what transformers' cache reads
        raise UserError(f"{name}: transformers makes no cache for its config ({type(error).__name__}: {error})") from error
    for shape in shapes:
        cached = layers[shape.layer] if shape.layer < len(layers) else None
        window = getattr(cached, "sliding_window", None) if getattr(cached, "is_sliding", False) else None
        if window is not None and (shape.window is None or shape.window > window):
            raise UserError(
                f"{name}: layer {shape.layer} attends to {shape.window or 'all'} keys, but transformers' cache holds {window}: "
                "which is meant? set sliding_window in its config.json right"
            )


def _run(model: Any, name: str, **inputs: Tensor) -> LayerRecorder:
    """Return what a forward pass shows."""
    probe = LayerRecorder()
    previous = attach(model, probe, name)
    try:
        # without weights no token can be looked at: beside a cache transformers does not look for packed texts
        probe.seen.append(model(**inputs, use_cache=inputs["input_ids"].is_meta).logits)
    except UserError:
        raise
    except Exception as error:  # of the model's own code: its traceback stays with the line
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
        reason = f"{type(error).__name__}: {first}"
        raise UserError(f"{name}: {type(model).__name__} does not run on {TOKENS} tokens ({reason})") from error
    finally:
        detach(model, probe, previous)
    return probe


def _follows(seen: Tensor, shifted: Tensor) -> bool:
    """Return whether [...,TOKENS,D] of one token at all positions moves by one place where positions are one greater. Attention
    returns zeros, so that nothing but the position tells rows apart."""
    next_rows, rows, moved = (x.float() for x in (seen[..., 1:, :], seen[..., :-1, :], shifted[..., :-1, :]))
    change = (next_rows - rows).norm()
    return not (change > NOISE * rows.norm() and (moved - next_rows).norm() > change / 2)


def global_shapes(shapes: Iterable[LayerShape]) -> list[LayerShape]:
    """Return the layers that attend to everything, or all where every layer has a window: those that methods are for."""
    shapes = list(shapes)
    return [shape for shape in shapes if shape.window is None] or shapes


def column_bytes(shapes: Iterable[LayerShape], itemsize: int) -> int:
    """Return the bytes that the keys and values of one token take in a cache, by the bytes of an element."""
    return sum(2 * shape.kv_heads * shape.head_dim * itemsize for shape in shapes if not shape.shares_keys)
