"""Rows of blocks from block distances, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from attention_kernels.block_index import causal_blocks

ENTRIES = 1 << 25
"""Entries of the lists made at once; each takes about 16 bytes meanwhile."""


def list_blocks_reference(
    distances: Tensor, nearer: Tensor, block: int, q_len: int, k_len: int, width: int
) -> tuple[Tensor, Tensor]:
    """Return counts [B, H, Mq] and indices [B, H, Mq, width], int32.

    distances int32 [B, H, N], ascending block distances from the block that the row's last token would be in if the row were
    whole; nearer int32 [B, H, N + 1], how many are below each. A few query blocks at a time.
    """
    device = distances.device
    last = causal_blocks(q_len, k_len, block, block, device) - 1
    row_end = ((torch.arange(len(last), device=device) + 1) * block - 1 + (k_len - q_len)) // block
    up_to = nearer[..., row_end + 1]
    counts = (up_to - nearer[..., row_end - last]).contiguous()
    batch, heads, rows = counts.shape
    indices = torch.empty(batch, heads, rows, width, dtype=torch.int32, device=device)
    place = torch.arange(width, device=device)
    step = max(1, ENTRIES // (batch * heads * width))
    for first in range(0, rows, step):
        chunk = slice(first, first + step)
        at = (up_to[:, :, chunk, None] - 1 - place).clamp(min=0)  # blocks ascend as distances fall
        far = distances.unsqueeze(2).expand(-1, -1, at.shape[2], -1).gather(-1, at)
        listed = row_end[chunk, None].to(torch.int32) - far
        indices[:, :, chunk] = torch.where(place < counts[:, :, chunk, None], listed, 0)
    return counts, indices
