"""The demo of a prefill method: `python -m methods.NAME` draws what the method keeps of a small made-up attention map."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from attention_kernels.skip_softmax import SkipRule, skip_softmax_attention
from attention_kernels.sparse_attention import SparseIndex
from torch import Tensor

import methods
from methods.parts.base import Knob, LayerInputs, Method
from methods.parts.demo_command import DemoResult, demo_command
from methods.parts.demo_layers import DRAWN, HEADS, SHAPE, DemoLayers, demo_gates
from methods.parts.demo_picture import HeadChoice

TURNS = 16
"""Densities measured to find a knob for a sparsity."""


def demo(name: str, arguments: Sequence[str] | None = None, **defaults: Any) -> None:
    """Draw what the method registered as `name` keeps of a made-up map.

    arguments: None takes the command line. defaults: knobs that suit a short prompt, where the method's own suit long ones.
    """
    demo_command(methods.registry, name, select_all, arguments, defaults)


@torch.no_grad()
def select_all(method: Method, made_up: DemoLayers) -> DemoResult:
    """Return what a method keeps of the last layer, having seen all of them in their order."""
    notes = _prepare(method, made_up)
    knob = method.calibrates()
    if knob is not None:
        _calibrate(method, knob, made_up)
        notes.append(f"The knob {knob.name} was bisected for the sparsity.")
    index = _select(method, made_up)
    x = made_up.layers[-1][0]
    choices = {head: _choice(x, index, head) for head in DRAWN}
    return DemoResult(method, _density(index), choices, tuple(notes))


def _prepare(method: Method, made_up: DemoLayers) -> list[str]:
    """Give a method the gates or the head search that it needs, and return a sentence on each."""
    notes = []
    if method.gate is not None:
        method.load(demo_gates(method.gate, method.block_size), **SHAPE)
        notes.append("Its gates are not trained: they are handed mean queries and mean keys as they are.")
    if method.search_file() is not None:
        if method.search_file() != method.searched:
            raise ValueError(f"{method.search_file()}: a demo searches its own made-up heads and takes no file")
        search = method.search(**SHAPE)
        for x, v in made_up.layers:
            search.observe(x, v)
        method.load_search(search.result(), **SHAPE)
        notes.append("Its search of heads was made on these layers.")
    return notes


def _calibrate(method: Method, knob: Knob, made_up: DemoLayers) -> None:
    """Set a knob to the value, of TURNS halvings of its range, whose density is nearest to the one that was asked for."""

    def set_knob(point: float) -> None:
        method.set_knob(knob, math.exp(point) if knob.log else point)

    low, high = (math.log(end) if knob.log else end for end in (knob.low, knob.high))
    target, densities = 1 - method.required_sparsity(), dict[float, float]()
    for _ in range(TURNS):
        middle = (low + high) / 2
        set_knob(middle)
        densities[middle] = _density(_select(method, made_up))
        low, high = (middle, high) if (densities[middle] < target) == knob.rising else (low, middle)
    set_knob(min(densities, key=lambda point: abs(densities[point] - target)))


def _select(method: Method, made_up: DemoLayers) -> SparseIndex | None:
    """Return the index of the last layer; None where all is kept."""
    for x, _ in made_up.layers:  # in their order: a layer may take the blocks of one before it
        choice = method.select(x)
    v = made_up.layers[-1][1]
    return skip_softmax_attention(x.q, x.k, v, choice, scale=x.scale)[1] if isinstance(choice, SkipRule) else choice


def _density(index: SparseIndex | None) -> float:
    return 1.0 if index is None else float(index.density().mean())


def _choice(x: LayerInputs, index: SparseIndex | None, head: int) -> HeadChoice:
    """Return one query head's attention and what an index keeps of it."""
    tokens = x.q.shape[2]
    positions = torch.arange(tokens)
    causal = positions <= positions[:, None]
    scores = x.q[0, head] @ x.k[0, head * x.k.shape[1] // HEADS].mT * x.scale
    keys = causal if index is None else causal & _keys(index, head)
    return HeadChoice(positions, scores.masked_fill(~causal, -math.inf).softmax(-1), keys)


def _keys(index: SparseIndex, head: int) -> Tensor:
    """Return bool [Q,K], the keys in the kept blocks and columns of each query of a query head."""
    index_head = head * index.heads // HEADS  # the index may be of KV heads
    rows = torch.stack([index.row_keys(row)[0, index_head] for row in range(-(-index.q_len // index.q_block))])
    return rows.repeat_interleave(index.q_block, 0)[: index.q_len]
