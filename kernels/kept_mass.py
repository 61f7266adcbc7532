"""How much of the true attention falls on the blocks of an index: what a selection keeps, before any task is run."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.block_index import BlockIndex

ROWS = 16
"""Query blocks looked at, evenly spaced from the first to the last: each needs its attention to all keys."""


@torch.no_grad()
def kept_mass(q: Tensor, k: Tensor, index: BlockIndex, *, scale: float, rows: int = ROWS) -> Tensor:
    """Share of the causal attention probability of q [B,Hq,Q,D] over k [B,Hkv,K,D] that lies on the kept blocks.

    float32 [B,Hq] in [0, 1], mean over the queries of at most `rows` evenly spaced query blocks; softmax in float32 over all
    causal keys (float64 for float64 inputs). One KV head and one query block at a time: memory for q_block × K scores of
    its query heads.
    """
    batch, heads, q_len, _ = q.shape
    kv_heads, k_len = k.shape[1], k.shape[2]
    accurate = torch.float64 if q.dtype == torch.float64 else torch.float32
    total = index.counts.shape[-1]
    chosen = sorted({round(i * (total - 1) / max(1, rows - 1)) for i in range(rows)})
    group, shared = heads // kv_heads, heads // index.counts.shape[1]
    kept = torch.zeros(batch, heads, dtype=accurate, device=q.device)
    for row in chosen:
        begin, end = row * index.q_block, min((row + 1) * index.q_block, q_len)
        position = torch.arange(begin, end, device=q.device) + (k_len - q_len)
        seen = end + k_len - q_len
        future = torch.arange(seen, device=q.device) > position[:, None]
        tokens = _tokens(index, row, seen)  # [B,H,seen]
        for head in range(kv_heads):
            mine = slice(head * group, (head + 1) * group)
            scores = (q[:, mine, begin:end] @ k[:, head : head + 1, :seen].mT).to(accurate) * scale
            probabilities = scores.masked_fill(future, float("-inf")).softmax(-1)
            own = tokens[:, torch.arange(heads, device=q.device)[mine] // shared]
            kept[:, mine] += (probabilities * own[:, :, None]).sum(-1).mean(-1)
    return (kept / len(chosen)).float()


def _tokens(index: BlockIndex, row: int, seen: int) -> Tensor:
    """bool [B,H,seen]: keys in the kept blocks of one row."""
    listed = index.indices[:, :, row]
    cols = -(-index.k_len // index.k_block)
    filled = torch.arange(listed.shape[-1], device=listed.device) < index.counts[:, :, row, None]
    mask = torch.zeros(*listed.shape[:2], cols + 1, dtype=torch.bool, device=listed.device)
    mask.scatter_(-1, torch.where(filled, listed, cols).long(), True)
    return mask[..., :cols].repeat_interleave(index.k_block, -1)[..., :seen]
