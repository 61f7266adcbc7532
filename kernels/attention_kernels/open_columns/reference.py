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
    before = (columns[:, :, None] < _own_start(blocks)[:, None]) & (place < counts[..., None, None])  # [B,H,Mq,V]
    parts = []
    step = max(1, LOOKUPS // max(1, batch * heads * max(width, cols)))
    for first in range(0, rows, step):
        chunk = slice(first, first + step)
        mask = replace(blocks, counts=blocks.counts[:, :, chunk], indices=blocks.indices[:, :, chunk]).to_mask()
        parts.append(_pack(before[:, :, chunk] & ~mask.gather(-1, at.expand(-1, -1, mask.shape[2], -1)), words))
    return tuple(torch.cat(part, 2) for part in zip(*parts, strict=True))  # type: ignore[return-value]


def pack_open(blocks: BlockIndex, keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return `open`, `open_counts` and `reach` of a ColumnIndex whose columns are all keys, of which a row has keys bool
    [B, H, Mq, K] beside its blocks. A few query blocks at a time."""
    batch, heads, rows, k_len = keys.shape
    before, words = torch.arange(k_len, device=keys.device) < _own_start(blocks)[:, None], -(-k_len // 32)
    parts = []
    step = max(1, LOOKUPS // max(1, batch * heads * k_len))
    for first in range(0, rows, step):
        chunk = slice(first, first + step)
        mask = replace(blocks, counts=blocks.counts[:, :, chunk], indices=blocks.indices[:, :, chunk]).to_mask()
        in_block = mask.repeat_interleave(blocks.k_block, -1)[..., :k_len]
        parts.append(_pack(keys[:, :, chunk] & before[chunk] & ~in_block, words))
    return tuple(torch.cat(part, 2) for part in zip(*parts, strict=True))  # type: ignore[return-value]


def _own_start(blocks: BlockIndex) -> Tensor:
    """Return the first key of the blocks over each row's own tokens, int64 [Mq]."""
    shape = (blocks.q_len, blocks.k_len, blocks.q_block, blocks.k_block)
    return diagonal_start(*shape, blocks.counts.device) * blocks.k_block


def _pack(open_: Tensor, words: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return bool [..., V] as int32 words [..., words], how many are set, and the places up to the last that is."""
    width = open_.shape[-1]
    power = 2 ** torch.arange(32, device=open_.device)
    word = (pad(open_, (0, words * 32 - width)).unflatten(-1, (words, 32)) * power).sum(-1)
    count = open_.sum(-1)
    reach = (open_ * torch.arange(1, width + 1, device=open_.device)).amax(-1) if width else count
    return (word - (word >> 31 << 32)).int(), count.int(), reach.int()  # bit 31 is the sign of an int32
