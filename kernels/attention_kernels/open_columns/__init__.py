"""A ColumnIndex from blocks and columns: which columns are open in which query block, that is in none of its kept blocks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from attention_kernels.backends import resolve_backend
from attention_kernels.block_index import BlockIndex
from attention_kernels.column_index import ColumnIndex
from attention_kernels.open_columns.reference import open_columns_reference, pack_open


def with_columns(blocks: BlockIndex, columns: Tensor, column_counts: Tensor, *, kernel: str = "auto") -> ColumnIndex:
    """Put columns, int32 [B, H, V], ascending and compact, k_len past their counts [B, H], beside `blocks` of H heads.

    kernel: reference, triton, or auto (triton on CUDA). Never waits for the device. Raises ValueError for shapes that don't
    fit.
    """
    if columns.shape[:2] != blocks.counts.shape[:2] or column_counts.shape != columns.shape[:2]:
        raise ValueError(
            f"columns {tuple(columns.shape)} and their counts {tuple(column_counts.shape)} need batch and heads "
            f"{tuple(blocks.counts.shape[:2])}, those of the blocks"
        )
    blocks = blocks.with_all_lists()
    if columns.dtype != torch.int32 or column_counts.dtype != torch.int32:
        raise ValueError(f"columns and their counts must be int32, not {columns.dtype} and {column_counts.dtype}")
    if resolve_backend(kernel, columns.new_empty(0, dtype=torch.float32)) == "triton":
        from attention_kernels.open_columns.triton_kernel import open_columns_triton  # imported late: needs triton

        return ColumnIndex(blocks, columns, column_counts, *open_columns_triton(blocks, columns, column_counts))
    return ColumnIndex(blocks, columns, column_counts, *open_columns_reference(blocks, columns, column_counts))


def with_row_keys(parts: Iterable[tuple[BlockIndex, Tensor]]) -> ColumnIndex:
    """Put single keys beside blocks, each row its own: parts of a few heads each, in their order, of blocks and keys bool
    [B, H, Mq, K], those that the row attends to beside its blocks. A part is done with before the next is asked for.

    The head's columns are all keys. Keys in a kept block, or from the row's own tokens on, are dropped. A kernel walks all keys
    up to the row's last one, and computes only steps with one that is open. Never waits for the device.
    """
    by_part, packed = [], []
    for part, keys in parts:
        blocks = part.with_all_lists()
        by_part.append(blocks)
        packed.append(pack_open(blocks, keys))
    words, counts, reach = (torch.cat(pieces, 1) for pieces in zip(*packed, strict=True))
    batch, heads = counts.shape[:2]
    width = max(blocks.indices.shape[-1] for blocks in by_part)
    indices = torch.cat([pad(blocks.indices, (0, width - blocks.indices.shape[-1])) for blocks in by_part], 1)
    every = replace(by_part[0], counts=torch.cat([blocks.counts for blocks in by_part], 1), indices=indices)
    columns = torch.arange(every.k_len, dtype=torch.int32, device=counts.device).expand(batch, heads, -1).contiguous()
    full = torch.full((batch, heads), every.k_len, dtype=torch.int32, device=counts.device)
    return ColumnIndex(every, columns, full, words, counts, reach, by_row=True)
