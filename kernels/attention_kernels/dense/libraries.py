"""FlashAttention 3 and 4, where their packages are installed; tensors [B, N, H, D]."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor

from attention_kernels.optional import Unusable, broken, is_broken, load

LIBRARIES = {"fa3": ("flash_attn_interface", "fa3_fwd_interface"), "fa4": ("flash_attn.cute",)}
"""Modules that may hold `flash_attn_func`, first found wins."""

FORWARD_ONLY = ("fa3_fwd_interface",)
"""Modules of packages that were built without a backward pass: what they return has no gradient."""

LIBRARY_GPUS = {"fa3": (9,), "fa4": (9, 10)}
"""Major compute capabilities a library runs on: Hopper is 9, the Blackwell of data centres 10."""


LSE_OPTIONS = {"fa3": "return_attn_probs", "fa4": "return_lse"}
"""The argument by which a library's function returns the log-sum-exp of each query beside its output."""

FEW_QUERIES = 512
"""Queries up to which FA3 may split the keys: 32 heads of 512 queries are 128 tiles, about as many as a Hopper has SMs."""


class LibraryFunction(Protocol):
    """Dense causal attention of q [B,Q,Hq,D] to k, v [B,K,Hkv,D] by a library."""

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, *, with_lse: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Return the output [B,Q,Hq,D] and, where asked for, the natural log-sum-exp of each query, float32 [B,Hq,Q]."""


@lru_cache
def find_library(name: str) -> LibraryFunction | None:
    """Return the library's function, or None where no package has one that can be imported: `library_problem` says why."""
    problems = []
    for module in LIBRARIES[name]:
        try:
            function: Any = load(module, "flash_attn_func")
        except Unusable as problem:
            problems.append(str(problem))
            continue

        def run(
            q: Tensor, k: Tensor, v: Tensor, scale: float, *, with_lse: bool = False, function: Any = function
        ) -> tuple[Tensor, Tensor | None]:
            # FA3 splits the keys of few queries among its programs only when told to (0: as it likes, not at all where the
            # queries alone keep the GPU busy): decoding at 128k tokens then takes a seventh of the time.
            splits = {"num_splits": 0} if name == "fa3" and q.shape[1] <= FEW_QUERIES else {}
            lse_option = {LSE_OPTIONS[name]: True} if with_lse else {}
            out = function(q, k, v, softmax_scale=scale, causal=True, **splits, **lse_option)
            # some releases return a tuple in any case
            return (out[0], out[1] if with_lse else None) if isinstance(out, tuple) else (out, None)

        _modules[name] = module
        return run
    _problems[name] = next(filter(is_broken, problems), problems[0])
    return None


_problems: dict[str, str] = {}
"""Why `find_library` found none, by library."""


_modules: dict[str, str] = {}
"""The module whose function `find_library` returns, by library."""


def gradient_problem(name: str) -> str | None:
    """Return why a library, which is there, has no gradient; None where it has one."""
    find_library(name)
    module = _modules.get(name)
    return f"its package {module.partition('_interface')[0]} has no backward pass" if module in FORWARD_ONLY else None


def library_problem(name: str) -> str | None:
    """Return why a library can't be called: no package has it, or its package fails at import. None where it can."""
    return None if find_library(name) is not None else _problems[name]


@lru_cache(maxsize=64)
def call_problem(name: str, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """Return why a library fails when it is called, for sixteen tokens; None where it works. Only where `library_problem` is
    None. Raises what a device raises that has no memory left: that says nothing of the library."""
    library = find_library(name)
    assert library is not None
    tokens = torch.zeros(1, 16, 1, head_dim, device=device, dtype=dtype)
    try:
        library(tokens, tokens, tokens, 1.0)
    except Exception as error:
        if "out of memory" in str(error).lower():
            raise
        return broken(LIBRARIES[name][0], error)
    return None
