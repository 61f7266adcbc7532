"""Tri-shape: an A-shape and the last queries in full."""

from __future__ import annotations

import pytest
import torch

import methods
from tests.methods.support import layer

BLOCK = 16


def mask(q_len: int, k_len: int | None = None, *, batch: int = 1, **knobs: object) -> torch.Tensor:
    index = methods.build("tri_shape", block_size=BLOCK, **knobs).select(layer(q_len, k_len, batch=batch))
    assert index is not None
    index.validate()
    return index.to_mask()


@pytest.mark.parametrize(("q_len", "k_len", "batch"), [(320, 320, 2), (317, 317, 1), (96, 333, 1), (90, 330, 1), (1, 100, 1)])
@pytest.mark.parametrize(("sinks", "window", "last"), [(20, 50, 30), (0, 16, 1), (16, 17, 0), (4, 40, 1000)])
def test_equals_the_recipe_block_by_block(q_len: int, k_len: int, batch: int, sinks: int, window: int, last: int) -> None:
    blocks = mask(q_len, k_len, batch=batch, sinks=sinks, window=window, last=last)
    assert blocks.shape[:2] == (batch, 2)
    assert bool((blocks == blocks[:1, :1]).all())
    wide, offset = -(-sinks // BLOCK) + -(-window // BLOCK), k_len - q_len
    for row in range(blocks.shape[2]):
        queries = range(row * BLOCK, min((row + 1) * BLOCK, q_len))
        own, seen = (offset + queries[0]) // BLOCK, (offset + queries[-1]) // BLOCK + 1
        if any(query >= q_len - last for query in queries):
            expected = set(range(seen))
        else:
            # a row that covers parts of two blocks counts both as its own
            budget = max(min(seen, wide), seen - own)
            first = min(-(-sinks // BLOCK), budget - (seen - own))
            expected = set(range(first)) | set(range(seen - (budget - first), seen))
        assert set(blocks[0, 0, row].nonzero().flatten().tolist()) == expected, row


def test_defaults_are_the_release_s() -> None:
    method = methods.build("tri_shape")
    assert method.knobs() == {"window": 3968, "sinks": 128, "last": 100}
    index = method.select(layer(6400))
    assert index is not None
    blocks = index.to_mask()[0, 0]
    assert blocks[70].nonzero().flatten().tolist() == [0, 1, *range(70 - 61, 71)]  # 128 tokens and 3968, in blocks of 64
    assert blocks[98:].sum(-1).tolist() == [99, 100]  # the last 100 queries lie in two blocks


def test_only_the_last_rows_differ_from_streaming_llm() -> None:
    knobs = {"sinks": 20, "window": 50}
    streaming = methods.build("streaming_llm", block_size=BLOCK, **knobs).select(layer(317))
    assert streaming is not None
    blocks, narrow = mask(317, last=29, **knobs), streaming.to_mask()
    assert torch.equal(blocks[:, :, :-2], narrow[:, :, :-2])
    assert bool(blocks[:, :, -2:].sum(-1).eq(torch.tensor([19, 20])).all())
    assert not torch.equal(blocks, narrow)


@pytest.mark.parametrize("sparsity", [0.5, 0.8, 0.9, 0.95])
def test_a_sparsity_pays_for_the_full_rows(sparsity: float) -> None:
    blocks = mask(640, sparsity=sparsity, sinks=16, last=30)
    total = 40 * 41 / 2
    assert abs(float(blocks[0, 0].sum()) / total - (1 - sparsity)) < 0.01
    full = int((blocks[0, 0].sum(-1)[-2:] == torch.tensor([39, 40])).sum())
    assert full == {0.5: 2, 0.8: 2, 0.9: 1, 0.95: 0}[sparsity]  # rows of 40 and 39, and 410, 164, 82 or 41 blocks in all


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"sparsity": 0.5, "window": 64}, "sparsity=0.5 and window=64: give one of them"),
        ({"last": -1}, "last=-1: must be at least 0 tokens"),
        ({"sinks": -1}, "sinks=-1: must be at least 0 tokens"),
        ({"window": 0}, "window=0: must be at least 1 token"),
    ],
)
def test_bad_knobs_are_one_clear_line(knobs: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        methods.build("tri_shape", **knobs)
