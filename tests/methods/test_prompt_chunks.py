"""A prompt in chunks: what does not read the prompt's end chooses the same blocks as in one piece, and pools no key twice."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from attention_kernels.skip_softmax import SkipRule
from attention_kernels.sparse_attention import attend
from torch import Tensor

import methods
from methods.parts.base import LayerInputs, Method
from methods.parts.prompt_chunks import ChunkedPrompt
from tests.methods.support import LAYERS, layer, ready

TOKENS, BLOCK = 289, 16
CHUNKS = (144, 208)
"""Tokens of a chunk: the last one has a single token, or 81."""


def in_chunks(x: LayerInputs, chunk: int) -> list[LayerInputs]:
    """The calls of one layer over a prompt in chunks."""
    tokens, prompt = x.k.shape[2], ChunkedPrompt(x.k.shape[2])
    ends = [min(first + chunk, tokens) for first in range(0, tokens, chunk)]
    return [
        replace(x, q=x.q[:, :, first:end], k=x.k[:, :, :end], prompt=prompt)
        for first, end in zip(range(0, tokens, chunk), ends, strict=True)
    ]


def seen_keys(method: Method, x: LayerInputs) -> Tensor:
    """Bool [B,Hq,Q,K]: the keys that each query attends to. None keeps all."""
    q_len, k_len, heads = x.q.shape[2], x.k.shape[2], x.q.shape[1]
    causal = torch.ones(q_len, k_len, dtype=torch.bool).tril(k_len - q_len)
    choice = method.select(x)
    if isinstance(choice, SkipRule):
        choice = attend(x.q, x.k, x.k, choice, scale=x.scale, kernel="reference")[1]
    if choice is None:
        return causal.expand(len(x.q), heads, -1, -1)
    rows = -(-q_len // choice.q_block)
    keys = torch.stack([choice.row_keys(row) for row in range(rows)], 2).repeat_interleave(choice.q_block, 2)[:, :, :q_len]
    return keys.repeat_interleave(heads // keys.shape[1], 1) & causal


def joined(parts: list[Tensor]) -> Tensor:
    """What the queries of all chunks see, over all keys."""
    most = parts[-1].shape[-1]
    return torch.cat([torch.nn.functional.pad(part, (0, most - part.shape[-1])) for part in parts], dim=2)


def made(name: str, knobs: dict[str, Any]) -> Method:
    """The method, one whose knob is searched with some value of it."""
    method = ready(name, block_size=BLOCK, **knobs)
    if (knob := method.calibrates()) is not None and name in SEARCHED and knob.name != "blocks":
        method.set_knob(knob, SEARCHED[name])
    return method


SEARCHED = {"minference": 0.006, "blasst": 1e4}
"""Values of knobs that leave something out of this prompt."""
CASES: list[tuple[str, dict[str, Any]]] = [
    *((name, {"sparsity": 0.7}) for name in methods.names() if name != "dense"),
    ("seer", {"selection": "threshold", "threshold": 0.03, "last": 2}),
    ("seer", {"selection": "topk", "sparsity": 0.7, "last": 3}),
    ("block_topk", {"selection": "threshold", "threshold": 0.03, "last": 2, "pool": "max"}),
    ("block_topk", {"selection": "nz_ratio", "sparsity": 0.7, "last": 2}),
    ("block_topk", {"selection": "nz_ratio", "nz_ratio": 0.3, "last": 2, "shared": True}),
    ("block_topk", {"selection": "nz_ratio", "blocks": 4}),
    ("block_topk", {"selection": "topk", "sparsity": 0.7, "last": 4}),
    ("oracle", {"selection": "threshold", "threshold": 0.03, "last": 2}),
    ("random", {"sparsity": 0.7, "last": 2}),
    ("flash_prefill", {"alpha": 0.5}),
    ("xattention", {"threshold": 0.6, "last": 2}),
    ("sparge", {"cdf": 0.7, "similar": -1.0}),
    ("sparge", {"rule": "topk", "topk": 0.2, "similar": -1.0}),
    ("moba", {"topk": 2, "block": 32}),
    ("moba", {"sparsity": 0.7, "block": 16, "exact": True}),
    ("kascade", {"topk": 0.2}),
    ("streaming_llm", {"window": 60}),
    ("tri_shape", {"window": 60, "sinks": 16, "last": 40}),
    ("tri_shape", {"sparsity": 0.7, "last": 40}),
]


@pytest.mark.parametrize(("name", "knobs"), CASES, ids=[f"{name}-{'-'.join(map(str, k.values()))}" for name, k in CASES])
def test_a_method_that_does_not_read_the_end_chooses_the_same_blocks_in_chunks(name: str, knobs: dict[str, Any]) -> None:
    number = LAYERS - 1
    x = layer(TOKENS, number=number, seed=1)
    whole = seen_keys(made(name, knobs), x)
    assert whole.float().mean() < 0.45, "it leaves out some of the half that is causal"
    for chunk in CHUNKS:
        method = made(name, knobs)
        parts = joined([seen_keys(method, part) for part in in_chunks(x, chunk)])
        same = torch.equal(parts, whole)
        assert same or method.reads_end, f"chunks of {chunk}"
        assert not same or name != "flexprefill", "whose last queries are each chunk's"
