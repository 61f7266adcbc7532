"""Open columns in Triton: one program for each query block and head looks every column's block up in the row's list."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from attention_kernels.block_index import BlockIndex

AT_ONCE = 512
"""Columns looked up side by side: 16 words of bits."""


@triton.jit(do_not_specialize=["rows", "list_width", "width", "words", "offset", "steps"])
def _open_columns(
    Counts,
    Indices,
    Columns,
    ColumnCounts,
    Open,
    OpenCounts,
    Reach,
    rows,
    list_width,
    width,
    words,
    offset,
    steps,
    Q_BLOCK: tl.constexpr,
    K_BLOCK: tl.constexpr,
    AT_ONCE: tl.constexpr,
):
    row = tl.program_id(0)
    head = tl.program_id(1).to(tl.int64)
    count = tl.load(Counts + head * rows + row)
    blocks = Indices + (head * rows + row) * list_width
    limit = tl.load(ColumnCounts + head)
    start = (row * Q_BLOCK + offset) // K_BLOCK * K_BLOCK  # from here on every block is kept
    open_count = tl.zeros([AT_ONCE], tl.int32)
    reach = tl.zeros([AT_ONCE], tl.int32)
    for first in range(0, width, AT_ONCE):
        place = first + tl.arange(0, AT_ONCE)
        column = tl.load(Columns + head * width + place, mask=place < limit, other=2147483647)
        block = column // K_BLOCK
        # the first entry of the list that is not below `block`: `steps` halvings find it in a list of any length
        low = tl.zeros([AT_ONCE], tl.int32)
        high = tl.zeros([AT_ONCE], tl.int32) + count
        for _ in range(steps):
            middle = (low + high) // 2
            seen = middle < high
            below = (tl.load(blocks + middle, mask=seen, other=0) < block) & seen
            low = tl.where(below, middle + 1, low)
            high = tl.where(below, high, middle)
        in_list = tl.load(blocks + low, mask=low < count, other=-1) == block
        is_open = (column < start) & (in_list == 0)
        open_count += is_open.to(tl.int32)
        reach = tl.maximum(reach, tl.where(is_open, place + 1, 0))
        bits = tl.reshape(is_open.to(tl.int32), [AT_ONCE // 32, 32]) << tl.arange(0, 32)[None, :]
        word = first // 32 + tl.arange(0, AT_ONCE // 32)
        tl.store(Open + (head * rows + row) * words + word, tl.sum(bits, 1), mask=word < words)
    tl.store(OpenCounts + head * rows + row, tl.sum(open_count, 0))
    tl.store(Reach + head * rows + row, tl.max(reach, 0))


def open_columns_triton(blocks: BlockIndex, columns: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return `open`, `open_counts` and `reach` of a ColumnIndex."""
    batch, heads, width = columns.shape
    rows, words = blocks.counts.shape[-1], -(-width // 32)
    listed, indices = blocks.counts.contiguous(), blocks.indices.contiguous()
    columns, counts = columns.contiguous(), counts.contiguous()
    outputs = (torch.empty(batch, heads, rows, n, dtype=torch.int32, device=columns.device) for n in (words, 1, 1))
    open_, open_counts, reach = outputs
    with torch.cuda.device_of(columns):  # Triton launches on the current device
        _open_columns[(rows, batch * heads)](
            listed,
            indices,
            columns,
            counts,
            open_,
            open_counts,
            reach,
            rows,
            indices.shape[-1],
            width,
            words,
            blocks.k_len - blocks.q_len,
            indices.shape[-1].bit_length(),
            Q_BLOCK=blocks.q_block,
            K_BLOCK=blocks.k_block,
            AT_ONCE=AT_ONCE,
            num_warps=4,
        )
    return open_, open_counts.squeeze(-1), reach.squeeze(-1)
