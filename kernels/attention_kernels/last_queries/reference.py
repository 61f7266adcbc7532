"""Column and diagonal means of the last queries' attention in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

SCORES = 1 << 26
"""Attention scores held at once, twice over: 256 MiB each in float32 (a KV head of more is not split)."""


def vertical_slash_reference(q: Tensor, k: Tensor, *, scale: float, rows: int) -> tuple[Tensor, Tensor]:
    """Run `attention_kernels.last_queries.vertical_slash` in plain PyTorch. `rows` is the number of queries."""
    (batch, heads, q_len, dim), (kv_heads, k_len) = q.shape, k.shape[1:3]
    group = heads // kv_heads
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    q = q[:, :, q_len - rows :].reshape(batch, kv_heads, group * rows, dim).to(wide) * scale
    future = torch.ones(rows, rows, dtype=torch.bool, device=q.device).triu(1)
    vertical = torch.empty(batch, kv_heads, group, k_len, dtype=wide, device=q.device)
    slash = torch.empty_like(vertical)
    step = max(1, SCORES // (batch * group * rows * k_len))
    for first in range(0, kv_heads, step):
        part = slice(first, first + step)
        scores = (q[:, part] @ k[:, part].to(wide).mT).unflatten(2, (group, rows))
        scores[..., k_len - rows :].masked_fill_(future, -float("inf"))
        # rows - 1 zeros in front: row r of a diagonal lies one place further right than row r - 1, so a view whose rows
        # are one element longer than they are has the diagonals as its columns
        scores = scores.softmax(-1)
        probs = pad(scores, (rows - 1, 0))
        strides = (*probs.stride()[:-2], probs.stride(-2) + 1, 1)
        vertical[:, part] = scores.mean(-2)
        slash[:, part] = probs.as_strided((*probs.shape[:-1], k_len), strides).mean(-2)
    return vertical.flatten(1, 2), slash.flatten(1, 2)
