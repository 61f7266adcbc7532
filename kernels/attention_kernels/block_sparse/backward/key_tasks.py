"""In which order the key blocks get their gradient, and which of them in parts.

Models keep some key blocks in most rows, the first one above all. Such a block is one long sum: with four query heads to a KV
head and 10 % of the blocks of 128 it takes 1,024 pairs of blocks at 32k tokens, where a multiprocessor of an H200 has 797 in
all, and 256 of 51 at 8k. So the longest are cut into PARTS, whose sums are put together in one order, and all long ones start
first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from attention_kernels.transposed_index import TransposedIndex

LONG = 2
"""A key block is long that more query blocks list than LONG times the mean."""
PARTS = 8
"""Programs that share the sums of a key block that is split."""
SLOTS = 2
"""Key blocks that may be split, in the mean of all KV heads. Each takes 2 · PARTS · block · head dim numbers meanwhile: 16 MiB
for 8 KV heads of 128 and blocks of 128."""


def key_tasks(transposed: TransposedIndex, lists: int) -> tuple[Tensor, Tensor, int]:
    """Return all (sequence, KV head, key block), int32 [B · Hkv · Nk], in the order in which they start; how many of the first
    are split, int32 [1]; and how many could be.

    First come the longest, which are split, then other long ones, then the rest; each in their own order, in which programs
    side by side read the same queries. Does not wait for the device.
    """
    lengths = transposed.starts[..., ::lists].diff(dim=-1).flatten()
    slots = min(SLOTS * transposed.starts.shape[0] * transposed.starts.shape[1], len(lengths))
    long = lengths > LONG * lengths.float().mean()
    longest = torch.argsort(lengths, descending=True, stable=True)[:slots]
    split = torch.zeros_like(long).scatter(0, longest, long[longest])
    order = torch.argsort(2 - long.to(torch.int8) - split.to(torch.int8), stable=True)
    return order.to(torch.int32), split.sum(dtype=torch.int32).view(1), slots
