"""A BlockIndex as libraries want it: a list of the blocks that need a causal mask, a list of those that don't."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import pad

from attention_kernels.block_index import BlockIndex, causal_blocks, diagonal_start


@dataclass(frozen=True)
class BlockLists:
    """Blocks of each query block, int32, on the index's device.

    Attributes:
        masked_counts, masked: [B, H, Mq], [B, H, Mq, W']: blocks over the row's own tokens, where some keys lie in the
            future of some queries. The last block of the keys, which may be short, is only ever among these.
        full_counts, full: [B, H, Mq], [B, H, Mq, W]: blocks that every query of the row sees whole.
    """

    masked_counts: Tensor
    masked: Tensor
    full_counts: Tensor
    full: Tensor


def split_diagonal(index: BlockIndex, width: int | None = None) -> BlockLists:
    """Split an index into its two lists, without waiting for the device.

    Every row keeps all blocks over its own tokens, and they are the last of its ascending list. So which they are, and how
    many, follows from the lengths alone: that list is made once for a shape and kept, and the other is the index itself
    with smaller counts. width: W' and W, where both lists must be equally wide; None: as narrow as they are. Both are empty
    for full rows, which are not for these lists.
    """
    batch, heads = index.counts.shape[:2]
    shape = (index.q_len, index.k_len, index.q_block, index.k_block)
    elsewhere, masked_counts, masked = _own_blocks(batch, heads, shape, width, index.full_rows, index.counts.device)
    full = index.indices if width is None else _widen(index.indices, width)
    return BlockLists(masked_counts, masked, index.counts - elsewhere, full.contiguous())


def per_query_head(index: BlockIndex, heads: int) -> BlockIndex:
    """Return the index with a list for each of `heads` query heads, repeated where a group shares one."""
    shared = heads // index.counts.shape[1]
    if shared == 1:
        return index
    return replace(index, counts=index.counts.repeat_interleave(shared, 1), indices=index.indices.repeat_interleave(shared, 1))


def _widen(indices: Tensor, width: int) -> Tensor:
    return pad(indices, (0, width - indices.shape[-1]))


@lru_cache(maxsize=4)
def _own_blocks(
    batch: int, heads: int, shape: tuple[int, int, int, int], width: int | None, full_rows: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Return int32 [Mq], [B, H, Mq] and [B, H, Mq, W']: how many of a row's blocks the other list lacks, how many lie over the
    row's own tokens, and which these are. The last `full_rows` rows have none, and the other list lacks all. Read only."""
    with torch.inference_mode(False):  # kept for later calls, which may train
        most = int((causal_blocks(*shape) - diagonal_start(*shape)).max())  # on the host; all else on the device
        first = diagonal_start(*shape, device)
        causal = causal_blocks(*shape, device).to(torch.int32)
        listed = torch.arange(len(causal), device=device) < len(causal) - full_rows
        own = torch.where(listed, causal - first, 0).to(torch.int32)
        steps = torch.arange(most, device=device)
        blocks = torch.where(steps < own[:, None], first[:, None] + steps, 0).to(torch.int32)
        blocks = _widen(blocks, width or most)
        return (
            torch.where(listed, own, causal),
            own.expand(batch, heads, -1).contiguous(),
            blocks.expand(batch, heads, -1, -1).contiguous(),
        )
