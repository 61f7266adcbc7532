"""RoPE whose frequencies depend on the length: every sequence is turned as it would be alone in a model fresh from its folder.

transformers takes the frequencies of a batch from its longest row, and dynamic NTK keeps those of the longest sequence that
came before. `separate_rows` ends both with hooks on the rotary module, which is called again for the rows that differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from harness.core.errors import UserError

LONGROPE = "longrope"
DYNAMIC = "dynamic"
"""The kinds that transformers' `dynamic_rope_update` knows: longrope has one set of frequencies up to its switch and one past
it, every type with "dynamic" in its name has others for every length past it."""

_ARGUMENTS = ("x", "position_ids", "layer_type")
"""Of a rotary module's forward, in order."""


@dataclass(frozen=True)
class Switch:
    """Where the frequencies of a rotary module change: kind LONGROPE or DYNAMIC, and the greatest length, in tokens, that has
    those of short sequences."""

    kind: str
    length: int

    def frequencies(self, length: int) -> int:
        """Return a number that is equal for lengths with equal frequencies."""
        longer = length > self.length
        return int(longer) if self.kind == LONGROPE else max(length, self.length)


@dataclass
class _State:
    """What a rotary module with switches was last asked: how often it ran, and the least length it is to assume."""

    passes: int = 0
    least: int = 0


_states: WeakKeyDictionary[nn.Module, _State] = WeakKeyDictionary()


def switch_lengths(model: Any) -> tuple[int, ...]:
    """Return the lengths in tokens, ascending, up to which a sequence has the frequencies of a short one, and past which it has
    others; empty where the frequencies don't depend on the length. model: of transformers, or its decoder."""
    return tuple(sorted({switch.length for switch in model_switches(model)}))


def model_switches(model: Any) -> set[Switch]:
    """Return where the frequencies of any layer change."""
    return {switch for rotary in _rotary_modules(model) for switch in switches(rotary).values()}


def _rotary_modules(model: Any) -> Iterator[nn.Module]:
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    for module in decoder.modules():
        if hasattr(module, "rope_type") and hasattr(module, "config"):
            yield module


def switches(rotary: Any) -> dict[str | None, Switch]:
    """Return where the frequencies of a rotary module change, by type of layers; None where all layers share them."""
    by_type: dict[str | None, Switch] = {}
    nested = isinstance(rotary.rope_type, dict)
    for layer_type, rope_type in rotary.rope_type.items() if nested else [(None, rotary.rope_type)]:
        if DYNAMIC in str(rope_type):
            by_type[layer_type] = Switch(DYNAMIC, int(rotary.original_max_seq_len))
        elif rope_type == LONGROPE:
            parameters = rotary.config.rope_parameters
            settings = parameters[layer_type] if nested else parameters
            by_type[layer_type] = Switch(LONGROPE, int(settings["original_max_position_embeddings"]))
    return by_type


def separate_rows(model: Any) -> None:
    """Make every sequence of a model independent of the others: of those beside it, and of those before it.

    It stays so for as long as the model lives; models whose frequencies don't depend on the length are left as they are.
    """
    for rotary in _rotary_modules(model):
        if rotary not in _states and switches(rotary):
            _states[rotary] = _State()
            rotary.register_forward_pre_hook(_forget, with_kwargs=True)
            rotary.register_forward_hook(_separate, with_kwargs=True)


@contextmanager
def frequencies_of(model: Any, length: int) -> Iterator[None]:
    """Turn every sequence as one of `length` tokens at least while it lasts: for pieces of a prompt whose whole is known."""
    states = [_states[rotary] for rotary in _rotary_modules(model) if rotary in _states]
    before = [state.least for state in states]
    for state in states:
        state.least = length
    try:
        yield
    finally:
        for state, least in zip(states, before, strict=True):
            state.least = least


def assumed_length(model: Any) -> int:
    """Return the length that `frequencies_of` makes every sequence of a model at least, 0 outside of it."""
    return max((_states[rotary].least for rotary in _rotary_modules(model) if rotary in _states), default=0)


def passes(rotary: nn.Module) -> int:
    """Return how often a rotary module ran, where its frequencies may be others after each time; else 0."""
    state = _states.get(rotary)
    return 0 if state is None else state.passes


def _forget(rotary: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Give a rotary module the frequencies it had when it was made, before a call."""
    layer_type = _bound(args, kwargs).get("layer_type")
    switch = switches(rotary).get(layer_type)
    if switch is None or switch.kind != DYNAMIC:
        return  # transformers' LongRoPE remembers nothing
    prefix = "" if layer_type is None else f"{layer_type}_"
    device = getattr(rotary, f"{prefix}inv_freq").device
    rotary.register_buffer(f"{prefix}inv_freq", getattr(rotary, f"{prefix}original_inv_freq").to(device), persistent=False)
    setattr(rotary, f"{prefix}max_seq_len_cached", rotary.original_max_seq_len)


def _separate(rotary: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    """Return cos and sin (`output`) of a call with every row's own frequencies; the module is left with those of the first row.

    Waits for the device where the kind is DYNAMIC and there are several rows, as transformers does for any.
    """
    state, bound = _states.get(rotary), _bound(args, kwargs)
    switch = switches(rotary).get(bound.get("layer_type"))
    if state is None or switch is None:  # a copy of the module, or a type of layers that doesn't change
        return output
    state.passes += 1
    positions = bound["position_ids"]
    rows = positions.shape[-2] if positions.ndim > 1 else 1
    if rows == 1 and not state.least:
        return output

    def waves(positions: Tensor) -> Any:
        # a position more, which is cut off again, makes the module take the sequence for a longer one
        last = positions.new_full((*positions.shape[:-1], 1), max(state.least, 1) - 1)
        _forget(rotary, args, kwargs)
        replaced = {**bound, "position_ids": torch.cat((positions, last), -1)}
        return _on_tensors(lambda wave: wave[..., :-1, :], rotary.forward(**replaced))

    if rows == 1:
        return waves(positions)
    lengths = (positions.reshape(-1, *positions.shape[-2:]).amax((0, 2)) + 1).clamp(min=state.least)
    if switch.kind == LONGROPE:
        is_long = (lengths > switch.length)[:, None, None]
        longer = positions.new_full((*positions.shape[:-1], 1), switch.length)
        long = waves(torch.cat((positions, longer), -1))
        long = _on_tensors(lambda wave: wave[..., :-1, :], long)
        short = long if state.least > switch.length else waves(positions.clamp(max=switch.length - 1))
        output = _on_tensors(lambda one, other: torch.where(is_long, one, other), long, short)
    else:
        groups: dict[int, list[int]] = {}
        for row, length in enumerate(lengths.tolist()):
            groups.setdefault(switch.frequencies(length), []).append(row)
        parts = [waves(positions[..., group, :]) for group in groups.values()]
        order = torch.tensor([row for group in groups.values() for row in group], device=positions.device).argsort()
        output = _on_tensors(lambda *waves: torch.cat(waves, -3)[..., order, :, :], *parts)
    waves(positions[..., :1, :])
    return output


def _bound(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a rotary module's forward by name. Raises UserError where there are no positions."""
    bound = dict(zip(_ARGUMENTS, args, strict=False)) | kwargs
    if not isinstance(bound.get("position_ids"), Tensor):
        raise UserError("the model's RoPE depends on the length, but its rotary module gets no position_ids: not supported")
    return bound


def _on_tensors(change: Callable[..., Tensor], *outputs: Any) -> Any:
    """Return what `change` makes of the tensors of rotary modules' outputs, each a tensor or a tuple of them."""
    if isinstance(outputs[0], Tensor):
        return change(*outputs)
    return tuple(change(*tensors) for tensors in zip(*outputs, strict=True))


def frequencies_dtype(model: Any) -> torch.dtype | None:
    """Return the dtype in which a model holds RoPE's frequencies; None where it has none, or computes them anew each time."""
    return next((buffer.dtype for name, buffer in model.named_buffers() if name.endswith("inv_freq")), None)
