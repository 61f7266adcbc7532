"""Open columns in plain PyTorch: each row's blocks as a mask, looked up at every column."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from attention_kernels.block_index import BlockIndex, diagonal_start

LOOKUPS = 1 << 24
"""Columns looked up at once; each takes about 20 bytes meanwhile."""


def open_columns_reference(blocks: BlockIndex, columns: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return `open`, `open_counts` and `reach` of a ColumnIndex. A few query blocks at a time."""
    batch, heads, width = columns.shape
    rows, cols, words = blocks.counts.shape[-1], -(-blocks.k_len // blocks.k_block), -(-width // 32)
    at = (columns // blocks.k_block).clamp(max=cols - 1).long()[:, :, None]
    place = torch.arange(width, device=columns.device)
    start = diagonal_start(blocks.q_len, blocks.k_len, blocks.q_block, blocks.k_block, columns.device) * blocks.k_block
    before = (columns[:, :, None] < start[:, None]) & (place < counts[..., None, None])  # [B,H,Mq,V]
    power = 2 ** torch.arange(32, device=columns.device)
    parts = []
    step = max(1, LOOKUPS // max(1, batch * heads * max(width, cols)))
    for first in range(0, rows, step):
        chunk = slice(first, first + step)
        mask = replace(blocks, counts=blocks.counts[:, :, chunk], indices=blocks.indices[:, :, chunk]).to_mask()
        open_ = before[:, :, chunk] & ~mask.gather(-1, at.expand(-1, -1, mask.shape[2], -1))
        word = (pad(open_, (0, words * 32 - width)).unflatten(-1, (words, 32)) * power).sum(-1)
        reach = (open_ * (place + 1)).amax(-1) if width else open_.sum(-1)
        parts.append((word - (word >> 31 << 32), open_.sum(-1), reach))  # bit 31 is the sign of an int32
    return tuple(torch.cat(part, 2).to(torch.int32) for part in zip(*parts, strict=True))  # type: ignore[return-value]
