"""The transpose of a BlockIndex: which query blocks list each key block. The backward pass walks it for dK and dV.

Blocks over a row's own tokens are in neither form: every row keeps them, so which they are follows from the lengths alone.
Made on the device by counting, adding up and filling in order: the same entries in the same places every time, and nothing
waits. Each (row, key block) is looked for in the row's ascending list, in ⌈log2(width)⌉ + 1 reads out of a list that the L1
cache holds. At 128k tokens, blocks of 128 and 32 lists that is 17 million searches of eight reads, twice.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attention_kernels.backends import resolve_backend
from attention_kernels.block_index import BlockIndex
from attention_kernels.transposed_index.reference import query_lists_reference, transpose_reference

ROW_BITS = 20
"""Bits of an entry that hold its query block; the list that it comes from is in those above."""
MOST_LISTS = 1 << (31 - ROW_BITS)
"""Lists that one KV head may have."""


@dataclass(frozen=True)
class TransposedIndex:
    """Query blocks that list each key block, by KV head.

    Attributes:
        starts: int32 [B, Hkv, Nk · L + 1]; L is the number of lists of a KV head: of its query heads, or one that they share.
            The entries of key block c out of list l begin at starts[c · L + l] and end where the next begin.
        entries: int32 [B, Hkv, at most so many], the list << ROW_BITS | the query block, ascending within a key block.
            What lies past the last start means nothing.
    """

    starts: Tensor
    entries: Tensor


def transpose_index(index: BlockIndex, kv_heads: int, *, kernel: str = "auto") -> TransposedIndex:
    """Return which query blocks list each key block, the blocks over their own tokens left out; full rows list all others.

    kernel: reference, triton, or auto (triton on CUDA). Never waits for the device. Raises ValueError for more lists or query
    blocks than an entry can hold.
    """
    lists, rows = index.heads // kv_heads, index.counts.shape[-1]
    if lists >= MOST_LISTS or rows >= 1 << ROW_BITS:
        raise ValueError(
            f"{rows} query blocks in {lists} lists of a KV head: the transpose of an index takes fewer than {1 << ROW_BITS} in "
            f"fewer than {MOST_LISTS}; use larger blocks"
        )
    if _runs_triton(kernel, index):
        from attention_kernels.transposed_index.triton_kernel import transpose_triton  # imported late: needs triton

        return TransposedIndex(*transpose_triton(index, kv_heads, ROW_BITS))
    return TransposedIndex(*transpose_reference(index, kv_heads, ROW_BITS))


def query_lists(index: BlockIndex, *, kernel: str = "auto") -> tuple[Tensor, Tensor]:
    """Return the same as libraries want it: counts int32 [B, H, Nk] and query blocks int32 [B, H, Nk, Mq], ascending, what
    lies past the counts meaning nothing. Takes Nk · Mq entries a head, as nothing waits to learn the longest list."""
    if _runs_triton(kernel, index):
        from attention_kernels.transposed_index.triton_kernel import query_lists_triton  # imported late: needs triton

        return query_lists_triton(index)
    return query_lists_reference(index)


def _runs_triton(kernel: str, index: BlockIndex) -> bool:
    numbers = torch.empty(0, device=index.counts.device)  # of a type that every kernel takes: the index has none of its own
    return resolve_backend(kernel, numbers) == "triton"
