"""FlashAttention 3 and 4, where their packages are installed; tensors [B, N, H, D]."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from typing import Any

from torch import Tensor

LIBRARIES = {"fa3": ("flash_attn_interface", "fa3_fwd_interface"), "fa4": ("flash_attn.cute",)}
"""Modules that may hold `flash_attn_func`, first found wins."""

LIBRARY_GPUS = {"fa3": (9,), "fa4": (9, 10)}
"""Major compute capabilities a library runs on: Hopper is 9, the Blackwell of data centres 10."""


@lru_cache
def find_library(name: str) -> Callable[[Tensor, Tensor, Tensor, float], Tensor] | None:
    """Return a function (q, k, v, scale) -> out for the library, or None where no package has it."""
    for module in LIBRARIES[name]:
        try:
            function: Any = import_module(module).flash_attn_func
        except (ImportError, AttributeError):
            continue

        def run(q: Tensor, k: Tensor, v: Tensor, scale: float, function: Any = function) -> Tensor:
            # FA3 splits the keys of a single query among its programs only when told to (0: as it likes): decoding at 128k
            # tokens then takes a seventh of the time.
            splits = {"num_splits": 0} if name == "fa3" and q.shape[1] == 1 else {}
            out = function(q, k, v, softmax_scale=scale, causal=True, **splits)
            return out[0] if isinstance(out, tuple) else out

        return run
    return None
