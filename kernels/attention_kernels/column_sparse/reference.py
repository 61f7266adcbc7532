"""Attention over blocks and columns in plain PyTorch, computing only what is kept: the oracle of the tests and the CPU path."""

from __future__ import annotations

import torch
from torch import Tensor

from attention_kernels.column_index import ColumnIndex


def column_sparse_reference(q: Tensor, k: Tensor, v: Tensor, index: ColumnIndex, *, scale: float) -> Tensor:
    """Compute `attention_kernels.column_sparse.column_sparse_attention`, one query block of one head at a time, over the keys
    it keeps, gathered. Softmax in float32, or float64 for float64."""
    batch, heads, q_len, _ = q.shape
    accurate = torch.float64 if q.dtype == torch.float64 else torch.float32
    group, shared, offset = heads // k.shape[1], heads // index.heads, index.k_len - q_len
    out = torch.empty_like(q)
    for row in range(index.open.shape[2]):
        tokens = slice(row * index.q_block, min((row + 1) * index.q_block, q_len))
        position = torch.arange(tokens.start, tokens.stop, device=q.device) + offset
        row_keys = index.row_keys(row)[..., : tokens.stop + offset]
        for b in range(batch):
            for head in range(heads):
                seen = row_keys[b, head // shared].nonzero().squeeze(-1)
                own = q[b, head, tokens], k[b, head // group].index_select(0, seen), v[b, head // group].index_select(0, seen)
                scores = (own[0] @ own[1].mT).to(accurate) * scale
                weights = scores.masked_fill(seen > position[:, None], -float("inf")).softmax(-1)
                out[b, head, tokens] = weights.to(q.dtype) @ own[2]
    return out
