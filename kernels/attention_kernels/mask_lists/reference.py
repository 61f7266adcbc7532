"""The lists of a mask in plain PyTorch, a few heads at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from attention_kernels.causal import causal_mask, diagonal_mask

MASK_CHUNK = 1 << 25
"""Entries of a mask made into indices at once; each takes 20 bytes meanwhile."""


def mask_lists_reference(mask: Tensor, shape: tuple[int, int, int, int], width: int | None) -> tuple[Tensor, Tensor]:
    """Run `attention_kernels.mask_lists.mask_lists` in plain PyTorch. shape: q_len, k_len, q_block, k_block."""
    mask = (mask | diagonal_mask(*shape, mask.device)) & causal_mask(*shape, mask.device)
    cols = mask.shape[-1]
    counts = mask.sum(-1, dtype=torch.int32)
    width = int(counts.max()) if width is None else width
    columns = torch.arange(cols, dtype=torch.int32, device=mask.device)
    indices = torch.empty(*mask.shape[:-1], width, dtype=torch.int32, device=mask.device)
    step = max(1, MASK_CHUNK // max(1, mask[:, :1].numel()))
    for chunk, out in zip(mask.split(step, 1), indices.split(step, 1), strict=True):
        place = torch.where(chunk, chunk.cumsum(-1, dtype=torch.int32) - 1, width).long()  # not kept: a last column
        wide = torch.zeros(*chunk.shape[:-1], width + 1, dtype=torch.int32, device=mask.device)
        out.copy_(wide.scatter_(-1, place, columns.expand(chunk.shape))[..., :width])
    return counts, indices
