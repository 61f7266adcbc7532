"""Inputs for the tests of decode methods: a cache that grows, padded on the left or not, and every method ready to select."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import torch
from attention_kernels.block_index import BlockIndex
from torch import Tensor

from methods import decode
from methods.decode.parts.base import DecodeMethod, StepInputs
from methods.parts.base import LayerInputs
from tests.methods.support import DIM, layer

SPARSE = [name for name in decode.names() if decode.get(name).family != "none"]


@lru_cache(maxsize=8)
def _longest(batch: int, seed: int) -> LayerInputs:
    """Return the layer that all steps of a seed are cut from: read it only."""
    return layer(1024, batch=batch, seed=seed)


def step(
    length: int, *, batch: int = 1, starts: tuple[int, ...] | None = None, seed: int = 0, number: int = 2, device: str = "cpu"
) -> StepInputs:
    """Return the step of the token at `length` - 1; the keys of a shorter step of one seed begin those of a longer one.

    Keys are drawn for 1024 tokens and cut. starts: columns of padding on the left, NaN.
    """
    longest = _longest(batch, seed)
    k = longest.k[:, :, :length].clone()
    at = None
    if starts is not None:
        at = torch.tensor(starts, dtype=torch.int32)
        k = k.masked_fill((torch.arange(length) < at[:, None])[:, None, :, None], float("nan"))
    x = StepInputs(q=longest.q[:, :, length - 1 : length], k=k, layer=number, scale=DIM**-0.5, rope=longest.rope, starts=at)
    return replace(x, q=x.q.to(device), k=x.k.to(device), starts=None if at is None else at.to(device))


def one_sequence(x: StepInputs, row: int) -> StepInputs:
    """Return one sequence of a batch, without its padding."""
    start = 0 if x.starts is None else int(x.starts[row])
    return replace(x, q=x.q[row : row + 1], k=x.k[row : row + 1, :, start:], starts=None)


def ready(name: str, **knobs: object) -> DecodeMethod:
    """Return a method that is built and, where it needs weights, has them."""
    method = decode.build(name, **knobs)
    if method.weights is not None:
        from tests.methods.test_decode_gate import weights

        method.load(weights(method.block_size), **shape())
    return method


def shape() -> dict[str, int]:
    from tests.methods.support import HEADS, KV_HEADS, LAYERS

    return {"layers": LAYERS + 1, "heads": HEADS, "kv_heads": KV_HEADS, "head_dim": DIM}


def choose(method: DecodeMethod, x: StepInputs) -> BlockIndex | None:
    """Return the choice of one step, from a state that is made for it."""
    return method.select(x, method.start(x))


def kept_mask(index: BlockIndex, row: int, blocks: int) -> Tensor:
    """Return bool [H, blocks], the kept blocks of one sequence; assert that none past its own blocks is kept."""
    counts, indices = index.counts[row, :, 0], index.indices[row, :, 0].long()
    listed = torch.arange(indices.shape[-1], device=indices.device) < counts[:, None]
    mask = torch.zeros(len(counts), max(blocks, int(indices.max()) + 1) + 1, dtype=torch.bool, device=indices.device)
    mask.scatter_(1, torch.where(listed, indices, mask.shape[1] - 1), True)
    mask = mask[:, :-1]
    assert not bool(mask[:, blocks:].any())
    assert torch.equal(mask.sum(1, dtype=torch.int32), counts)
    return mask[:, :blocks]
