"""An index made a few heads at a time is the one made at once."""

from __future__ import annotations

import pytest
import torch
from attention_kernels.block_index import BlockIndex

import methods
from methods.parts.head_chunks import query_heads, select_in_chunks
from tests.methods.support import layer


@pytest.mark.parametrize("limit", [1 << 24, 1])
@pytest.mark.parametrize(("q_len", "k_len"), [(203, 203), (61, 250)])
def test_equals_from_mask(q_len: int, k_len: int, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("methods.parts.head_chunks.BLOCK_PAIRS", limit)
    x = layer(q_len, k_len, batch=2)
    grid = methods.build("sparge", block_size=32).grid(x)
    mask = torch.rand(2, 4, -(-q_len // 32), -(-k_len // 16)) < 0.4
    index = select_in_chunks(lambda kv: mask[:, query_heads(kv, 2)], x, grid)
    index.validate()
    assert torch.equal(index.to_mask(), BlockIndex.from_mask(mask, **grid).to_mask())
