"""Made-up layers for the demos of methods: queries and keys whose attention has a sink, a local band, a needle, a diagonal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from attention_kernels.rope import rotate
from torch import Tensor

from methods.gates.weights import gate_state
from methods.parts.base import LayerInputs

LAYERS, HEADS, KV_HEADS, DIM = 4, 4, 2, 64
DRAWN = (0, 2)
"""Query heads that a demo draws: the first that reads each KV head."""
ROTARY = 32
"""Elements of a head that rotate; the others carry content, wherever a token stands."""
SINK, NEEDLE = ROTARY, ROTARY + 1
"""Elements that mark the keys of the sink and of the needle."""
SINK_TOKENS = 4
SHAPE = {"layers": LAYERS, "heads": HEADS, "kv_heads": KV_HEADS, "head_dim": DIM}


class DemoRope:
    """A rotary embedding whose waves are from four blocks to four prompts long, so that pooling over a block keeps them."""

    def __init__(self, tokens: int, block: int) -> None:
        waves = torch.logspace(math.log10(4 * block), math.log10(4 * tokens), ROTARY // 2)
        self.frequencies = 2 * math.pi / waves

    def cos_sin(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return cos and sin [P,R] float32 at positions [P], both halves."""
        angles = (positions[:, None].float() * self.frequencies).repeat(1, 2)
        return angles.cos(), angles.sin()

    def table(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return cos and sin [length,R/2] float32 of positions 0 to length - 1, one of the equal halves."""
        cos, sin = self.cos_sin(torch.arange(length))
        return cos[:, : ROTARY // 2].to(device), sin[:, : ROTARY // 2].to(device)


@dataclass(frozen=True)
class Landmark:
    """A structure in one head's attention. pairs: bool [K,K], the (query, key) pairs that belong to it."""

    name: str
    pairs: Tensor


@dataclass(frozen=True)
class DemoLayers:
    """A made-up prompt: the inputs and values [1,Hkv,K,D] of each layer, and the landmarks of each drawn head."""

    layers: tuple[tuple[LayerInputs, Tensor], ...]
    landmarks: Mapping[int, tuple[Landmark, ...]]


def demo_layers(tokens: int, block: int, seed: int) -> DemoLayers:
    """Return layers of so many tokens, alike but for their noise.

    All heads have a sink of four tokens. Query heads 0 and 1 look at a local band; 2 and 3 at a needle (half a block of keys,
    which the last quarter of the queries asks for) and at the keys a third of the prompt back, a diagonal.
    """
    rope, distance, needle = DemoRope(tokens, block), tokens // 3, int(tokens * 0.4) // block * block
    layers = []
    for layer in range(LAYERS):
        generator = torch.Generator().manual_seed(1000 * seed + layer)
        q, k, v = (0.5 * torch.randn(1, n, tokens, DIM, generator=generator) for n in (HEADS, KV_HEADS, KV_HEADS))
        # scores in units of the softmax's exponent: both factors of a product of 8·s are √(8·s), scale being 1/8
        band, sink, asked, diagonal = (math.sqrt(DIM**0.5 * strength) for strength in (9.0, 8.0, 9.0, 9.0))
        waves = math.sqrt(1 / (ROTARY // 2))
        k[..., : ROTARY // 2] += band * waves
        q[:, :2, :, : ROTARY // 2] += band * waves
        back = rope.frequencies * distance  # a query turned back by so much meets the keys that far behind it
        q[:, 2:, :, : ROTARY // 2] += diagonal * waves * back.cos()
        q[:, 2:, :, ROTARY // 2 : ROTARY] -= diagonal * waves * back.sin()
        q[..., SINK] += sink
        k[:, :, :SINK_TOKENS, SINK] += sink
        q[:, 2:, -(tokens // 4) :, NEEDLE] += asked
        k[:, :, needle : needle + block // 2, NEEDLE] += asked
        cos, sin = rope.table(tokens, q.device)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        layers.append((LayerInputs(q=q, k=k, layer=layer, scale=DIM**-0.5, rope=rope), v))
    return DemoLayers(tuple(layers), _landmarks(tokens, block, needle, distance))


def _landmarks(tokens: int, block: int, needle: int, distance: int) -> dict[int, tuple[Landmark, ...]]:
    query, key = torch.arange(tokens)[:, None], torch.arange(tokens)
    sink = Landmark("the sink", (key < SINK_TOKENS) & (query >= 2 * block))
    near = Landmark("the band", (query - key >= 0) & (query - key < 2 * block))
    asked = (key >= needle) & (key < needle + block // 2) & (query >= tokens - tokens // 4)
    return {0: (sink, near), 2: (sink, Landmark("the needle", asked), Landmark("the diagonal", query - key == distance))}


def demo_gates(gate: Any, block_size: int) -> dict[str, Tensor]:
    """Return weights for all layers of a gate (a class of methods.gates) that pass pooled queries and mean keys through as they
    are: all that a gate can tell before it is trained."""
    gates = [gate(HEADS, KV_HEADS, DIM, block_size=block_size) for _ in range(LAYERS)]
    state = gate_state(gates)
    for name, weight in state.items():
        kind = name.rpartition(".")[2]
        if kind in ("q", "k"):
            weight.zero_()
            weight[..., -DIM:, :] = torch.eye(DIM)  # of keys pooled three ways the mean comes last
    return state
