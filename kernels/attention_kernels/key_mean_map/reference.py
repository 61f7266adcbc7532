"""Queries against mean keys in plain PyTorch, a few query blocks at a time."""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK_BYTES = 128 << 20


def key_mean_map_reference(q: Tensor, means: Tensor, *, q_block: int, k_block: int, k_len: int, scale: float) -> Tensor:
    """Run `attention_kernels.key_mean_map.key_mean_map` in plain PyTorch."""
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    batch, heads, q_len, _ = q.shape
    cols = means.shape[2]
    keys = means.to(wide).repeat_interleave(heads // means.shape[1], 1).mT
    ends = (torch.arange(cols, device=q.device) + 1) * k_block - 1
    step = q_block * max(1, CHUNK_BYTES // (batch * heads * q_block * cols * keys.element_size()))
    parts = []
    for first in range(0, q_len, step):
        last = min(first + step, q_len)
        position = torch.arange(first, last, device=q.device) + (k_len - q_len)
        scores = (q[:, :, first:last].to(wide) @ keys) * scale
        scores.masked_fill_(ends > position[:, None], -float("inf"))
        scores = torch.nn.functional.pad(scores, (0, 0, 0, -(last - first) % q_block), value=-float("inf"))
        parts.append(scores.unflatten(2, (-1, q_block)).logsumexp(3).float())
    return torch.cat(parts, 2)
