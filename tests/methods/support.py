"""Inputs for the tests of methods: random layers, a plain rotary embedding, and every method ready to select."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from attention_kernels.sparse_attention import SparseIndex
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import methods
from harness.core.method_facts import method_facts
from methods.gates.attn_gate import AttnGate
from methods.gates.weights import gate_state
from methods.parts.base import Knob, LayerInputs, Method

HEADS, KV_HEADS, DIM, LAYERS = 4, 2, 16, 2
SHAPE = {"layers": LAYERS, "heads": HEADS, "kv_heads": KV_HEADS, "head_dim": DIM}


class PlainRope:
    """RoPE of base 10000 over the first `rotary` elements, with attention scaling."""

    def __init__(self, rotary: int = DIM, scaling: float = 1.0) -> None:
        self.rotary = rotary
        self.scaling = scaling

    def cos_sin(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        frequencies = 10000.0 ** (-torch.arange(0, self.rotary, 2, device=positions.device) / self.rotary)
        angles = positions[:, None].float() * frequencies
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos() * self.scaling, angles.sin() * self.scaling

    def table(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        cos, sin = self.cos_sin(torch.arange(length, device=device))
        return cos[:, : self.rotary // 2], sin[:, : self.rotary // 2]


def layer(
    q_len: int, k_len: int | None = None, *, batch: int = 1, seed: int = 0, number: int = 0, device: str = "cpu"
) -> LayerInputs:
    """Return random queries and keys, the keys with a common part per stretch of text so that blocks differ."""
    k_len = k_len or q_len
    generator = torch.Generator().manual_seed(seed)
    topics = torch.randn(batch, KV_HEADS, k_len // 48 + 1, DIM, generator=generator).repeat_interleave(48, dim=2)
    k = torch.randn(batch, KV_HEADS, k_len, DIM, generator=generator) + 2 * topics[:, :, :k_len]
    q = 2 * torch.randn(batch, HEADS, q_len, DIM, generator=generator)
    q, k = q.to(device), k.to(device)
    return LayerInputs(q=q, k=k, layer=number, scale=DIM**-0.5, rope=PlainRope())


def gates(block_size: int, *, q_linear: bool = False, seed: int = 0) -> dict[str, Tensor]:
    """Return random gate weights for all layers."""
    torch.manual_seed(seed)
    layer_gates = [AttnGate(HEADS, KV_HEADS, DIM, block_size=block_size, q_linear=q_linear) for _ in range(LAYERS)]
    return {name: 10 * weight for name, weight in gate_state(layer_gates).items()}


def ready(name: str, **knobs: object) -> Method:
    """Return a method that is built and, where it needs weights or a search, has them. Where its defaults have no formula for a
    sparsity and other knobs do, it has those, but for `knobs`."""
    method = methods.build(name, **{**method_facts(name).formula, **knobs})
    if method.weights is not None:
        state = gates(method.block_size)
        method.load(state, layers=LAYERS, heads=HEADS, kv_heads=KV_HEADS, head_dim=DIM)
    if method.search_required:
        native = tuple(sorted((knob, value) for knob, value in knobs.items() if knob != "sparsity"))
        method.load_search(_searched(name, native), **SHAPE)
    return method


@lru_cache(maxsize=32)
def _searched(name: str, knobs: tuple[tuple[str, object], ...]) -> dict[str, Any]:
    """The result of a search whose knobs are these; what a required search finds does not depend on the sparsity."""
    return search(methods.build(name, **dict(knobs)))


def search(method: Method, tokens: int = 300) -> dict[str, Any]:
    """Search random layers, load the result and return it."""
    finder = method.search(**SHAPE)
    for number in range(LAYERS):
        x = layer(tokens, number=number, seed=number)
        finder.observe(x, torch.randn(x.k.shape, generator=torch.Generator().manual_seed(number)))
    result = finder.result()
    method.load_search(result, **SHAPE)
    return result


class Launches(TorchDispatchMode):
    """Counts the operations of torch that a GPU would be given a kernel for, while it lasts."""

    FREE = ("alias", "as_strided", "detach", "empty", "empty_like", "expand", "select", "slice", "split", "t", "transpose")
    FREE += ("unbind", "unfold", "unsqueeze", "squeeze", "view", "_unsafe_view", "permute")
    """Views, and memory without values."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket.__name__ not in self.FREE
        return func(*args, **(kwargs or {}))


def select_without_waiting(method: Method, x: LayerInputs) -> SparseIndex:
    """Return the selection on a GPU; raise where it waits for the device."""
    method.select(x)  # tensors that are kept for each shape may wait when they are made
    torch.cuda.set_sync_debug_mode("error")
    try:
        index = method.select(x)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert index is not None
    return index


def bisect(measure: Callable[[float], float], knob: Knob, target: float) -> float:
    """Return the value of a knob whose density comes nearest to the target, of twenty halvings of its range. One layer costs so
    little that it needs no better search."""
    low, high = (math.log(end) if knob.log else end for end in (knob.low, knob.high))
    densities: dict[float, float] = {}
    for _ in range(20):
        middle = (low + high) / 2
        value = math.exp(middle) if knob.log else middle
        densities[value] = measure(value)
        if abs(densities[value] - target) <= 0.002:
            break
        low, high = (middle, high) if (densities[value] < target) == knob.rising else (low, middle)
    return min(densities, key=lambda value: abs(densities[value] - target))
