"""The demo of a method of decoding: `python -m methods.decode.NAME` draws what its steps keep of a small made-up map."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from methods import decode
from methods.decode.parts.base import DecodeMethod, StepInputs
from methods.parts.demo_command import DemoResult, demo_command
from methods.parts.demo_layers import DRAWN, HEADS, SHAPE, DemoLayers, demo_gates
from methods.parts.demo_picture import HeadChoice


def demo(name: str, arguments: Sequence[str] | None = None, **defaults: Any) -> None:
    """Draw what the decode method registered as `name` keeps of a made-up map.

    arguments: None takes the command line. defaults: knobs that suit a short prompt, where the method's own suit long ones.
    """
    demo_command(decode.registry, name, select_steps, arguments, defaults)


@torch.no_grad()
def select_steps(method: DecodeMethod, made_up: DemoLayers) -> DemoResult:
    """Return what a method keeps at the last token of every block of the last layer, each as a step of decoding.

    The state is made from the first block and then takes in every key, as in decoding.
    """
    notes = ["Each row is one step of decoding, at the last token of a block."]
    if method.gate is not None:
        method.load(demo_gates(method.gate, method.block_size), **SHAPE)
        notes.append("Its gates are not trained: they are handed the queries and mean keys as they are.")
    layer = made_up.layers[-1][0]
    tokens, block = layer.q.shape[2], method.block_size
    last_step = StepInputs(q=layer.q, k=layer.k, layer=layer.layer, scale=layer.scale, rope=layer.rope)
    positions = torch.tensor([*range(block - 1, tokens - 1, block), tokens - 1])
    keys_kept = torch.zeros(len(positions), HEADS, tokens, dtype=torch.bool)
    state, known, blocks_kept, blocks = method.start(_step(last_step, block)), block, 0.0, 0
    for row, position in enumerate(positions.tolist()):
        for length in range(known + 1, position + 2):
            method.extend(state, _step(last_step, length))
        known = position + 1
        index = method.select(_step(last_step, known), state)
        row_blocks = -(-known // block)
        if index is None:
            keys_kept[row, :, :known] = True
            blocks_kept += row_blocks
        else:
            keys = index.row_keys(0)[0]
            keys_kept[row, :, :known] = keys.repeat_interleave(HEADS // len(keys), 0)
            blocks_kept += float(index.counts.float().mean())
        blocks += row_blocks
    choices = {}
    for head in DRAWN:
        scores = layer.q[0, head, positions] @ layer.k[0, head * layer.k.shape[1] // HEADS].mT * layer.scale
        future = torch.arange(tokens) > positions[:, None]
        attention = scores.masked_fill(future, -math.inf).softmax(-1)
        choices[head] = HeadChoice(positions, attention, keys_kept[:, head])
    return DemoResult(method, blocks_kept / blocks, choices, tuple(notes))


def _step(last_step: StepInputs, length: int) -> StepInputs:
    """Return the step of the token at `length` - 1."""
    return replace(last_step, q=last_step.q[:, :, length - 1 : length], k=last_step.k[:, :, :length])
