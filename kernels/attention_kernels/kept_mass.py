"""How much of the true attention falls on what an index keeps: what a selection is worth, before any task is run."""

from __future__ import annotations

import torch
from torch import Tensor

from attention_kernels.block_index import BlockIndex
from attention_kernels.column_index import ColumnIndex

ROWS = 16
"""Query blocks looked at, evenly spaced from the first to the last: each needs its attention to all keys."""


@torch.no_grad()
def kept_mass(
    q: Tensor, k: Tensor, index: BlockIndex | ColumnIndex, *, scale: float, rows: int = ROWS, after: int = 0
) -> Tensor:
    """Return the share of the causal attention probability of q [B,Hq,Q,D] over k [B,Hkv,K,D] that lies on the kept blocks and
    columns.

    float32 [B,Hq] in [0, 1], mean over the queries of at most `rows` evenly spaced query blocks, the first of them that of
    query `after`. The blocks weigh the same: of a long prompt the first, which keeps all, and the last, which some methods keep
    in full, weigh more than their share of the rows. Softmax in float32 over all causal keys (float64
    for float64 inputs). One KV head and one query block at a time: memory for q_block × K scores of its query heads.
    """
    batch, heads, q_len, _ = q.shape
    kv_heads, k_len = k.shape[1], k.shape[2]
    accurate = torch.float64 if q.dtype == torch.float64 else torch.float32
    first = min(after, q_len - 1) // index.q_block
    spread = (q_len - 1) // index.q_block - first
    chosen = sorted({first + round(i * spread / max(1, rows - 1)) for i in range(rows)})
    group, shared = heads // kv_heads, heads // index.heads
    mass_sum = torch.zeros(batch, heads, dtype=accurate, device=q.device)
    for row in chosen:
        begin, end = row * index.q_block, min((row + 1) * index.q_block, q_len)
        position = torch.arange(begin, end, device=q.device) + (k_len - q_len)
        seen = end + k_len - q_len
        future = torch.arange(seen, device=q.device) > position[:, None]
        tokens = index.row_keys(row)[..., :seen]
        for head in range(kv_heads):
            group_heads = slice(head * group, (head + 1) * group)
            scores = (q[:, group_heads, begin:end] @ k[:, head : head + 1, :seen].mT).to(accurate) * scale
            probabilities = scores.masked_fill(future, float("-inf")).softmax(-1)
            own = tokens[:, torch.arange(heads, device=q.device)[group_heads] // shared]
            mass_sum[:, group_heads] += (probabilities * own[:, :, None]).sum(-1).mean(-1)
    return (mass_sum / len(chosen)).float()
