"""Selecting a few heads at a time, so that long prompts take little memory beside the index itself."""

from __future__ import annotations

from collections.abc import Callable

import torch
from attention_kernels.block_index import BlockIndex
from torch import Tensor

from methods.parts.base import Grid, LayerInputs

BLOCK_PAIRS = 1 << 24
"""Block pairs decided at once. A rule holds a few float32 and int64 of each: about 0.6 GiB at the most."""


def select_in_chunks(choose: Callable[[slice], Tensor], x: LayerInputs, grid: Grid) -> BlockIndex:
    """Return the index of all query heads, made from masks of the query heads of a few KV heads. Never waits for the device.

    choose(kv): bool [B, H, Mq, Nk] for the H query heads that read the KV heads kv. As in `BlockIndex.from_mask` the
    diagonal is kept and the future dropped. `indices` are as wide as there are key blocks.
    """
    batch, heads, kv_heads = x.q.shape[0], x.q.shape[1], x.k.shape[1]
    rows, cols, group = -(-grid["q_len"] // grid["q_block"]), -(-grid["k_len"] // grid["k_block"]), heads // kv_heads
    step = max(1, BLOCK_PAIRS // (batch * group * rows * cols))
    if step >= kv_heads:
        return BlockIndex.from_mask(choose(slice(0, kv_heads)), wait=False, **grid)
    counts = torch.empty(batch, heads, rows, dtype=torch.int32, device=x.q.device)
    indices = torch.empty(batch, heads, rows, cols, dtype=torch.int32, device=x.q.device)
    for first in range(0, kv_heads, step):
        kv = slice(first, min(first + step, kv_heads))
        part = BlockIndex.from_mask(choose(kv), wait=False, **grid)
        counts[:, query_heads(kv, group)] = part.counts
        indices[:, query_heads(kv, group)] = part.indices
    return BlockIndex(counts, indices, **grid)


def query_heads(kv: slice, group: int) -> slice:
    """Return the query heads that read the KV heads kv, `group` query heads each."""
    return slice(kv.start * group, kv.stop * group)
