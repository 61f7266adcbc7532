"""Causal attention within a sliding window, a run of queries at a time."""

from __future__ import annotations

import torch
from torch import Tensor


def sliding_window_attention(q: Tensor, k: Tensor, v: Tensor, *, window: int, scale: float | None = None) -> Tensor:
    """Compute attention in which query i of q [B, Hq, Q, D] sees the last `window` keys up to its own position; memory O(Q ·
    window)."""
    if window < 1:
        raise ValueError(f"window={window}: must be at least 1")
    q_len, k_len, gqa = q.shape[2], k.shape[2], q.shape[1] != k.shape[1]
    step = max(128, window)
    out = []
    for start in range(0, q_len, step):
        stop = min(start + step, q_len)
        low, high = max(0, start + k_len - q_len - window + 1), stop + k_len - q_len
        position = torch.arange(start, stop, device=q.device)[:, None] + (k_len - q_len)
        key = torch.arange(low, high, device=q.device)
        mask = (key <= position) & (key > position - window)
        part = torch.nn.functional.scaled_dot_product_attention(
            q[:, :, start:stop], k[:, :, low:high], v[:, :, low:high], attn_mask=mask, scale=scale, enable_gqa=gqa
        )
        out.append(part)
    return torch.cat(out, 2)
