"""Dense causal attention as the formula reads, in float32 or float64."""

from __future__ import annotations

import torch
from torch import Tensor


def dense_reference(q: Tensor, k: Tensor, v: Tensor, *, scale: float, key_mask: Tensor | None = None) -> Tensor:
    """Run `attention_kernels.dense.dense_attention` in plain PyTorch. Stores the whole map."""
    accurate = torch.float64 if q.dtype == torch.float64 else torch.float32
    group = q.shape[1] // k.shape[1]
    keys, values = (x.to(accurate).repeat_interleave(group, 1) for x in (k, v))
    scores = q.to(accurate) @ keys.mT * scale
    q_len, k_len = q.shape[2], k.shape[2]
    seen = torch.ones(q_len, k_len, dtype=torch.bool, device=q.device).tril(k_len - q_len)
    if key_mask is not None:
        seen = seen & key_mask[:, None, None]
    return (torch.softmax(scores.masked_fill(~seen, float("-inf")), -1) @ values).to(q.dtype)
