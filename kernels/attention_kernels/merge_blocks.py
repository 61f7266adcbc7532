"""Coarser blocks from finer ones, for kernels that are faster on them: what is kept grows, and the merged index says so."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from attention_kernels.block_index import BlockIndex


def merge_blocks(index: BlockIndex, q_factor: int, k_factor: int) -> BlockIndex:
    """Return the index over blocks of q_factor query and k_factor key blocks: each keeps whatever one of its parts keeps.

    The smallest coarse index that covers `index`; its density is higher, and is the one to report. Runs on the index's
    device and never waits for it: `indices` is as wide as its longest listed row could be, not as it is. A coarse row with a
    full row in it is full: full rows are the last ones, so the last of its parts is. Raises ValueError for factors below 1.
    """
    if q_factor < 1 or k_factor < 1:
        raise ValueError(f"blocks can't be merged by {q_factor} and {k_factor}: both must be at least 1")
    if q_factor == k_factor == 1:
        return index
    q_block, k_block = index.q_block * q_factor, index.k_block * k_factor
    rows, cols = -(-index.q_len // q_block), -(-index.k_len // k_block)
    union = _union(index, q_factor, k_factor, rows, cols)
    counts, indices = _compact(union, min(cols, q_factor * index.indices.shape[-1]))
    merged = BlockIndex(counts, indices, q_block, k_block, index.q_len, index.k_len)
    return merged.with_last_rows(rows - index.listed_rows // q_factor) if index.full_rows else merged


def _union(index: BlockIndex, q_factor: int, k_factor: int, rows: int, cols: int) -> Tensor:
    """Return bool [B, H, rows, cols]: coarse blocks that hold a kept one of a listed row."""
    *lead, fine_rows, width = index.indices.shape
    filled = torch.arange(width, device=index.counts.device) < index.counts[..., None]
    if index.full_rows:
        filled = filled & (torch.arange(fine_rows, device=filled.device) < index.listed_rows)[:, None]
    coarse = torch.where(filled, index.indices // k_factor, cols)  # what fills a row up goes to a column of its own
    coarse = pad(coarse, (0, 0, 0, rows * q_factor - fine_rows), value=cols).reshape(*lead, rows, q_factor * width)
    union = torch.zeros(*lead, rows, cols + 1, dtype=torch.bool, device=coarse.device)
    return union.scatter_(-1, coarse.long(), True)[..., :cols]


def _compact(union: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Return counts [B, H, rows] and ascending indices [B, H, rows, width], int32, of the True columns. A running count says
    where each goes: several times cheaper than sorting."""
    counts = union.sum(-1, dtype=torch.int32)
    place = torch.where(union, union.cumsum(-1, dtype=torch.int32) - 1, width).long()
    columns = torch.arange(union.shape[-1], dtype=torch.int32, device=union.device).expand(union.shape)
    indices = torch.zeros(*union.shape[:-1], width + 1, dtype=torch.int32, device=union.device)
    return counts, indices.scatter_(-1, place, columns)[..., :width].contiguous()
