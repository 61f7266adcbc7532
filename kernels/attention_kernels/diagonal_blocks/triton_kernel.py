"""Rows of blocks from block distances in Triton: a program writes one row's list."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

AT_ONCE = 1024


@triton.jit(do_not_specialize=["rows", "entries", "width", "q_len", "offset"])
def _list_blocks(
    Distances, Nearer, Counts, Indices, rows, entries, width, q_len, offset, BLOCK: tl.constexpr, AT_ONCE: tl.constexpr
):
    row = tl.program_id(0)
    head = tl.program_id(1).to(tl.int64)
    row_end = ((row + 1) * BLOCK - 1 + offset) // BLOCK
    last = (tl.minimum((row + 1) * BLOCK, q_len) - 1 + offset) // BLOCK
    nearer = Nearer + head * (entries + 1)
    up_to = tl.load(nearer + row_end + 1)
    count = up_to - tl.load(nearer + row_end - last)
    tl.store(Counts + head * rows + row, count)
    for first in range(0, width, AT_ONCE):
        place = first + tl.arange(0, AT_ONCE)
        far = tl.load(Distances + head * entries + up_to - 1 - place, mask=place < count, other=0)
        listed = tl.where(place < count, row_end - far, 0)
        tl.store(Indices + (head * rows + row) * width + place, listed, mask=place < width)


def list_blocks_triton(
    distances: Tensor, nearer: Tensor, block: int, q_len: int, k_len: int, width: int
) -> tuple[Tensor, Tensor]:
    """Run `attention_kernels.diagonal_blocks.reference.list_blocks_reference` in Triton."""
    distances, nearer = distances.contiguous(), nearer.contiguous()
    batch, heads, entries = distances.shape
    rows = -(-q_len // block)
    counts = torch.empty(batch, heads, rows, dtype=torch.int32, device=distances.device)
    indices = torch.empty(batch, heads, rows, width, dtype=torch.int32, device=distances.device)
    with torch.cuda.device_of(distances):  # Triton launches on the current device
        _list_blocks[(rows, batch * heads)](
            distances,
            nearer,
            counts,
            indices,
            rows,
            entries,
            width,
            q_len,
            k_len - q_len,
            BLOCK=block,
            AT_ONCE=AT_ONCE,
            num_warps=4,
        )
    return counts, indices
