"""What a transformers mask function asks for: causal attention, or a sliding window of it; whatever else is refused.

transformers describes a mask by a function (batch, head, query position, key position) -> whether the key is seen. Ours are
probed: on the processor, over whole rows, once for each function of the same code and constants, never for each call. That is
sound only where nothing but positions and constants decides, so a function that holds tensors (of packed sequences, image
tokens, padding, …) is refused unread.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from functools import partial
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any, NoReturn

import torch
from torch import Tensor

from harness.core.errors import UserError

HORIZON = 1 << 10
"""Positions that are probed at least."""
FARTHEST = 1 << 20
"""Positions that a constant of a mask function may make the probe reach; a prompt that is longer reaches farther."""
MULTIPLES = (1, 2, 3)
"""Rows are probed around these multiples of each constant of a mask function."""
SPREAD_ROWS = 8
"""Rows that are probed between the others, spread evenly."""

MaskFunction = Callable[..., Any]


class _Reads(UserError, AttributeError):
    """A mask that a model reads by itself. As an AttributeError it leaves `hasattr` true to its word."""


@dataclass(frozen=True, eq=False)
class LayerMask:
    """The mask of a layer in our own words, from the mask function to the attention function, through the model's hands.

    keys: of the layer, as many as it must get. window: of keys that a query sees, None for all before it. key_mask [B,K]:
    False where there is no key; None where all are there. refusal: why it can't be honoured, said once a layer uses it: some
    decoders ask for masks that they have no use for. A model that reads its mask gets a UserError.
    """

    keys: int
    window: int | None = None
    key_mask: Tensor | None = None
    refusal: str | None = None

    def __getattr__(self, name: str) -> NoReturn:
        raise _Reads(f"the model reads its attention mask by itself (.{name}): not supported")

    def __getitem__(self, _: Any) -> NoReturn:
        raise UserError("the model cuts its attention mask by itself: not supported")

    @classmethod
    def __torch_function__(cls, function: Any, *_: Any, **__: Any) -> NoReturn:
        name = getattr(function, "__name__", "a function of torch")
        raise UserError(f"the model computes with its attention mask by itself ({name}): not supported")


class _NotOfConstants(Exception):
    """A mask function that holds more than positions and constants."""


def window_of(mask_function: MaskFunction | None, positions: int) -> int | None:
    """Return the keys that a causal mask function lets a query see, itself among them; None for all up to it.

    positions: of the prompt so far. Raises UserError for a function that asks for anything else.
    """
    if mask_function is None:
        return None
    try:
        key = _fingerprint(mask_function)
    except _NotOfConstants:
        raise UserError(_refusal(mask_function)) from None
    constants = [constant for constant in _constants(key) if 0 < constant <= FARTHEST]
    horizon = max(HORIZON, positions, (max(MULTIPLES) + 1) * max(constants, default=1))
    horizon = 1 << (horizon - 1).bit_length()  # powers of two: decoding does not probe at every step
    if (key, horizon) not in _windows:
        _windows[key, horizon] = _probe(mask_function, sorted(set(constants)), horizon)
    window = _windows[key, horizon]
    if window == 0:
        raise UserError(_refusal(mask_function))
    return window


_windows: dict[tuple[Hashable, int], int | None] = {}
"""What has been probed: the window, None for all keys, 0 for a mask that is not causal attention or a window of it."""


def _refusal(mask_function: MaskFunction) -> str:
    name = getattr(mask_function, "__qualname__", type(mask_function).__name__)
    return (
        f"a mask other than causal or a sliding window (packed sequences, image tokens, chunks, both directions, …) is not "
        f"supported: the model asks for {name.replace('.<locals>', '')}"
    )


def _probe(mask_function: MaskFunction, constants: list[int], horizon: int) -> int | None:
    """Return what `_windows` holds of a mask function, from whole rows of it around its constants, and between."""
    edges = [multiple * constant + step for constant in constants for multiple in MULTIPLES for step in (-1, 0, 1)]
    spread = [horizon * part // (SPREAD_ROWS + 1) + part for part in range(1, SPREAD_ROWS + 1)]
    rows = sorted({row for row in (0, 1, 2, horizon - 1, *edges, *spread) if 0 <= row < horizon})
    keys = torch.arange(horizon)[None, None, None]
    window: int | None = None
    for row in reversed(rows):  # the last one first: it shows the window
        query = torch.tensor(row)[None, None, None, None]
        seen = _evaluate(mask_function, query, keys)
        if seen is None:
            return 0
        if row == horizon - 1:
            visible = int(seen[0].sum())
            window = None if visible == horizon else visible
        expected = keys <= query
        if window is not None:
            expected &= keys > query - window
        if not bool((seen == expected).all()):
            return 0
    return window


def _evaluate(mask_function: MaskFunction, query: Tensor, keys: Tensor) -> Tensor | None:
    """Return one row of a mask for two sequences, [2,1,1,K]; None where the function can't be read this way."""
    try:
        seen = mask_function(torch.arange(2)[:, None, None, None], torch.zeros(1, 1, 1, 1, dtype=torch.int64), query, keys)
        return torch.as_tensor(seen).expand(2, 1, 1, keys.shape[-1]) if isinstance(seen, Tensor | bool) else None
    except Exception:  # whatever a function of the model's does that it can't do on plain positions
        return None


def _fingerprint(value: Any, depth: int = 0) -> Hashable:
    """Return code and constants of a function, what it is made of included: equal where the functions do the same."""
    if value is None or isinstance(value, bool | int | float | str | BuiltinFunctionType | type | CodeType | ModuleType):
        return type(value), value
    if depth > 16:
        raise _NotOfConstants
    if isinstance(value, tuple | list):
        return tuple(_fingerprint(item, depth + 1) for item in value)
    if isinstance(value, partial):
        return tuple(_fingerprint(item, depth + 1) for item in (value.func, value.args, *sorted(value.keywords.items())))
    if isinstance(value, FunctionType):
        held = [cell.cell_contents for cell in value.__closure__ or ()]
        used = [value.__globals__[name] for name in value.__code__.co_names if name in value.__globals__]
        defaults = [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
        return value.__code__, tuple(_fingerprint(item, depth + 1) for item in (*held, *used, *defaults))
    raise _NotOfConstants


def _constants(fingerprint: Any) -> Iterator[int]:
    """Yield the whole numbers that a function holds or has in its code."""
    if isinstance(fingerprint, CodeType):
        yield from _constants(fingerprint.co_consts)
    elif isinstance(fingerprint, tuple):
        for item in fingerprint:
            yield from _constants(item)
    elif isinstance(fingerprint, int) and not isinstance(fingerprint, bool):
        yield fingerprint
