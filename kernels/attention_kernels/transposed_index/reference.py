"""The transpose of a BlockIndex in plain PyTorch: entries are sorted by key block, list and query block."""

from __future__ import annotations

import torch
from torch import Tensor

from attention_kernels.block_index import BlockIndex, causal_blocks, diagonal_start


def transpose_reference(index: BlockIndex, kv_heads: int, row_bits: int) -> tuple[Tensor, Tensor]:
    """Return `starts` and `entries` of a `TransposedIndex`."""
    blocks = _listed(index)
    rows, lists, cols = index.counts.shape[-1], index.heads // kv_heads, -(-index.k_len // index.k_block)
    device = blocks.device
    place = torch.arange(lists * rows, device=device).view(lists, rows, 1)  # list · rows + row
    keys = blocks.unflatten(1, (kv_heads, lists)) * (lists * rows) + place
    keys = keys.flatten(2).sort(-1).values
    bounds = torch.arange(cols * lists + 1, device=device) * rows
    starts = torch.searchsorted(keys, bounds.expand(*keys.shape[:2], -1).contiguous())
    entry = keys % (lists * rows)
    return starts.to(torch.int32), (entry // rows << row_bits | entry % rows).to(torch.int32)


def query_lists_reference(index: BlockIndex) -> tuple[Tensor, Tensor]:
    """Run `attention_kernels.transposed_index.query_lists` in plain PyTorch, through a mask."""
    rows, cols = index.counts.shape[-1], -(-index.k_len // index.k_block)
    mask = torch.zeros(*index.counts.shape, cols + 1, dtype=torch.bool, device=index.counts.device)
    mask = mask.scatter_(-1, _listed(index), True)[..., :cols].mT
    order = torch.arange(rows, device=mask.device)
    lists = torch.where(mask, order, rows).sort(-1).values
    return mask.sum(-1, dtype=torch.int32), torch.where(lists < rows, lists, 0).to(torch.int32)


def _listed(index: BlockIndex) -> Tensor:
    """Return int64 [B, H, Mq, width], the listed blocks that are not over their row's own tokens; Nk where there is none."""
    shape, device = (index.q_len, index.k_len, index.q_block, index.k_block), index.counts.device
    index = index.with_all_lists()
    own = causal_blocks(*shape, device) - diagonal_start(*shape, device)
    before = torch.arange(index.indices.shape[-1], device=device) < (index.counts - own)[..., None]
    return torch.where(before, index.indices.long(), -(-index.k_len // index.k_block))
