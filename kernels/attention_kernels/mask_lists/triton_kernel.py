# mypy: disable-error-code="no-untyped-def"
"""The lists of a mask in one launch: a program reads a row of the mask, counts as it goes, and puts each block in its place."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from attention_kernels.tiles import power_of_two

MOST_COLUMNS = 1024
"""Columns that a program looks at side by side."""


# What changes with a prompt's length is not specialised on: no compiling for each length.
@triton.jit(do_not_specialize=["heads", "rows", "width", "q_len", "k_len", "smb", "smh", "smm"])
def _list_mask(
    Mask,
    Counts,
    Indices,
    smb,
    smh,
    smm,
    heads,
    rows,
    width,
    q_len,
    k_len,
    Q_BLOCK: tl.constexpr,
    K_BLOCK: tl.constexpr,
    W: tl.constexpr,
):
    """List one row of one head, W columns at a time; what is past its count is 0."""
    row = tl.program_id(0)
    head = tl.program_id(1)
    mask = Mask + (head // heads).to(tl.int64) * smb + (head % heads).to(tl.int64) * smh + row.to(tl.int64) * smm
    line = head.to(tl.int64) * rows + row
    indices = Indices + line * width
    ahead = k_len - q_len
    own = (row * Q_BLOCK + ahead) // K_BLOCK  # the first block over the row's own tokens
    causal = (tl.minimum((row + 1) * Q_BLOCK, q_len) - 1 + ahead) // K_BLOCK + 1
    offs = tl.arange(0, W)
    count = tl.full([], 0, tl.int32)
    for start in range(0, causal, W):
        column = start + offs
        kept = tl.load(mask + column, mask=column < causal, other=0) != 0
        kept = (kept | (column >= own)) & (column < causal)
        place = count + tl.cumsum(kept.to(tl.int32), 0) - 1
        tl.store(indices + place, column, mask=kept & (place < width))
        count += tl.sum(kept.to(tl.int32), 0)
    for start in range(count // W * W, width, W):
        column = start + offs
        tl.store(indices + column, tl.zeros([W], tl.int32), mask=(column >= count) & (column < width))
    tl.store(Counts + line, count)


def mask_lists_triton(mask: Tensor, shape: tuple[int, int, int, int], width: int) -> tuple[Tensor, Tensor]:
    """Run `attention_kernels.mask_lists.mask_lists` in Triton. shape: q_len, k_len, q_block, k_block."""
    q_len, k_len, q_block, k_block = shape
    mask = mask if mask.stride(-1) == 1 else mask.contiguous()
    batch, heads, rows, cols = mask.shape
    counts = torch.empty(batch, heads, rows, dtype=torch.int32, device=mask.device)
    indices = torch.empty(batch, heads, rows, width, dtype=torch.int32, device=mask.device)
    wide = min(MOST_COLUMNS, max(32, power_of_two(cols)))
    with torch.cuda.device_of(mask):  # Triton launches on the current device
        _list_mask[(rows, batch * heads)](
            mask.view(torch.uint8),
            counts,
            indices,
            *mask.stride()[:3],
            heads,
            rows,
            width,
            q_len,
            k_len,
            Q_BLOCK=q_block,
            K_BLOCK=k_block,
            W=wide,
            num_warps=1 if wide <= 256 else 4,
        )
    return counts, indices
