"""The pooled attention map in plain PyTorch, a few query blocks at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.shapes import accumulator

CHUNK_BYTES = 64 << 20
"""Probabilities held at a time: what the memory is bounded by, beside the inputs and the map."""


def block_map_reference(q: Tensor, k: Tensor, *, q_block: int, k_block: int, scale: float, pool: str) -> Tensor:
    """See `kernels.block_map.block_map`. A chunk of whole rows is formed at a time, so the softmax needs no first pass."""
    accurate = accumulator(q.dtype)
    batch, heads, q_len, dim = q.shape
    kv_heads, k_len = k.shape[1], k.shape[2]
    rows, cols = -(-q_len // q_block), -(-k_len // k_block)
    queries = (q.to(accurate) * scale).view(batch, kv_heads, heads // kv_heads, q_len, dim)
    keys = k.to(accurate)[:, :, None]
    out = torch.zeros(batch, heads, rows, cols, dtype=torch.float32, device=q.device)
    step = max(1, CHUNK_BYTES // (batch * heads * q_block * k_len * queries.element_size()))
    for first in range(0, rows, step):
        start, stop = first * q_block, min((first + step) * q_block, q_len)
        seen = stop + k_len - q_len  # keys after the chunk's last query are in its future
        scores = queries[:, :, :, start:stop] @ keys[..., :seen, :].mT
        position = torch.arange(start, stop, device=q.device) + (k_len - q_len)
        scores.masked_fill_(torch.arange(seen, device=q.device) > position[:, None], float("-inf"))
        n, m = -(-(stop - start) // q_block), -(-seen // k_block)
        ends = (0, m * k_block - seen, 0, n * q_block - (stop - start))
        probs = torch.nn.functional.pad(torch.softmax(scores, -1), ends)
        tiles = probs.view(batch, heads, n, q_block, m, k_block)
        if pool == "max":
            pooled = tiles.amax((3, 5))
        else:  # the last block may have fewer queries
            block = torch.arange(first, first + n, device=q.device)
            pooled = tiles.sum((3, 5)) / (q_len - block * q_block).clamp(max=q_block)[:, None]
        out[:, :, first : first + n, :m] = pooled
    return out
