"""The transpose of a BlockIndex in Triton: counted, added up, filled. No atomics, so entries have one order."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import pad

from attention_kernels.block_index import BlockIndex

ROWS = 64
COLS = 16
"""Query blocks and key blocks that a program looks at together."""


# What changes with a prompt's length is not specialised on: one compiled kernel serves all.
@triton.jit(
    do_not_specialize=[
        *("scb", "sch", "sib", "sih", "sim"),
        *("heads", "lists", "rows", "listed", "cols", "width", "q_len", "k_len", "room"),
    ]
)
def _transpose(
    Counts,
    Indices,
    Sizes,
    Starts,
    Entries,
    scb,
    sch,
    sib,
    sih,
    sim,
    heads,
    lists,
    rows,
    listed,
    cols,
    width,
    q_len,
    k_len,
    room,
    Q_BLOCK: tl.constexpr,
    K_BLOCK: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ROW_BITS: tl.constexpr,
    FILL: tl.constexpr,
):
    """Count the query blocks of a few key blocks of one list, and with FILL write them from Starts on. Sizes [B, H, Nk];
    Starts [B, Hkv, Nk · lists + 1], Entries [B, Hkv, room]."""
    b = tl.program_id(1) // heads
    hi = tl.program_id(1) % heads
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    offset = k_len - q_len
    counts = Counts + b.to(tl.int64) * scb + hi.to(tl.int64) * sch
    blocks = Indices + b.to(tl.int64) * sib + hi.to(tl.int64) * sih
    seen = tl.zeros([BLOCK_C], tl.int32)
    group = (b * (heads // lists) + hi // lists).to(tl.int64)
    if FILL:
        at = tl.load(Starts + group * (cols * lists + 1) + c * lists + hi % lists, mask=c < cols, other=0)
    # The first row whose own tokens begin behind the first of these key blocks
    first = tl.maximum((tl.program_id(0) * BLOCK_C + 1) * K_BLOCK - offset + Q_BLOCK - 1, 0) // Q_BLOCK
    for r0 in range(first, rows, BLOCK_R):
        r = r0 + tl.arange(0, BLOCK_R)
        own = (r * Q_BLOCK + offset) // K_BLOCK
        causal = (tl.minimum((r + 1) * Q_BLOCK, q_len) - 1 + offset) // K_BLOCK + 1
        count = tl.load(counts + r, mask=r < listed, other=0)
        before = tl.where(r < listed, count - (causal - own), 0)
        line = blocks + r.to(tl.int64)[:, None] * sim
        low = tl.zeros([BLOCK_R, BLOCK_C], tl.int32)
        high = low + before[:, None]
        left = width
        while left > 0:  # ends when no range of `width` entries can hold one more
            middle = (low + high) // 2
            less = tl.load(line + middle, mask=low < high, other=k_len) < c[None, :]
            low = tl.where(less, middle + 1, low)
            high = tl.where(less, high, middle)
            left = left // 2
        listed_here = tl.load(line + low, mask=low < before[:, None], other=-1) == c[None, :]
        full = ((r >= listed) & (r < rows))[:, None] & (c[None, :] < own[:, None])
        member = (listed_here | full) & (c < cols)[None, :]
        one = member.to(tl.int32)
        if FILL:
            place = (at + seen)[None, :] + tl.cumsum(one, 0) - one
            entry = (hi % lists << ROW_BITS) | r
            where = Entries + group * room + place
            tl.store(where, tl.broadcast_to(entry[:, None], [BLOCK_R, BLOCK_C]), mask=member)
        seen += tl.sum(one, 0)
    tl.store(Sizes + (b * heads + hi).to(tl.int64) * cols + c, seen, mask=c < cols)


def transpose_triton(index: BlockIndex, kv_heads: int, row_bits: int) -> tuple[Tensor, Tensor]:
    """Return `starts` and `entries` of a `TransposedIndex`."""
    batch, heads = index.counts.shape[:2]
    lists, cols, width = heads // kv_heads, -(-index.k_len // index.k_block), index.indices.shape[-1]
    room = lists * (index.listed_rows * width + index.full_rows * cols)
    sizes = torch.empty(batch, heads, cols, dtype=torch.int32, device=index.counts.device)
    _walk(index, lists, sizes, sizes, sizes, 0, row_bits, fill=False)
    ends = sizes.view(batch, kv_heads, lists, cols).transpose(2, 3).flatten(2).cumsum(-1, dtype=torch.int32)
    starts = pad(ends, (1, 0))
    entries = torch.empty(batch, kv_heads, room, dtype=torch.int32, device=sizes.device)
    _walk(index, lists, torch.empty_like(sizes), starts, entries, room, row_bits, fill=True)
    return starts, entries


def query_lists_triton(index: BlockIndex) -> tuple[Tensor, Tensor]:
    """Run `attention_kernels.transposed_index.query_lists` in Triton: one pass, as each list has its place beforehand."""
    batch, heads, rows = index.counts.shape
    cols, device = -(-index.k_len // index.k_block), index.counts.device
    sizes = torch.empty(batch, heads, cols, dtype=torch.int32, device=device)
    entries = torch.empty(batch, heads, cols, rows, dtype=torch.int32, device=device)
    starts = (torch.arange(cols + 1, dtype=torch.int32, device=device) * rows).expand(batch, heads, -1).contiguous()
    _walk(index, 1, sizes, starts, entries, cols * rows, 0, fill=True)
    return sizes, entries


def _walk(
    index: BlockIndex, lists: int, sizes: Tensor, starts: Tensor, entries: Tensor, room: int, row_bits: int, *, fill: bool
) -> None:
    """Launch the kernel: it writes `sizes`, and with `fill` the entries."""
    counts, indices = index.counts, index.indices
    if indices.stride(-1) != 1 or counts.stride(-1) != 1:
        counts, indices = counts.contiguous(), indices.contiguous()
    batch, heads, rows = counts.shape
    cols = sizes.shape[-1]
    with torch.cuda.device_of(counts):  # Triton launches on the current device
        _transpose[(triton.cdiv(cols, COLS), batch * heads)](
            counts,
            indices,
            sizes,
            starts,
            entries,
            *counts.stride()[:2],
            *indices.stride()[:3],
            heads,
            lists,
            rows,
            index.listed_rows,
            cols,
            indices.shape[-1],
            index.q_len,
            index.k_len,
            room,
            Q_BLOCK=index.q_block,
            K_BLOCK=index.k_block,
            BLOCK_R=ROWS,
            BLOCK_C=COLS,
            ROW_BITS=row_bits,
            FILL=fill,
            num_warps=4,
        )
