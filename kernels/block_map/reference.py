"""The pooled attention map in plain PyTorch, a few query blocks at a time."""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK_BYTES = 128 << 20


def block_map_reference(q: Tensor, k: Tensor, *, q_block: int, k_block: int, scale: float, pool: str) -> Tensor:
    """See `kernels.block_map.block_map`."""
    accurate = torch.float64 if q.dtype == torch.float64 else torch.float32
    batch, heads, q_len, _ = q.shape
    k_len = k.shape[2]
    rows, cols = -(-q_len // q_block), -(-k_len // k_block)
    keys = k.to(accurate).repeat_interleave(heads // k.shape[1], 1)
    out = torch.zeros(batch, heads, rows, cols, dtype=accurate, device=q.device)
    step = max(1, CHUNK_BYTES // (batch * heads * q_block * k_len * out.element_size()))
    for first in range(0, rows, step):
        start, stop = first * q_block, min((first + step) * q_block, q_len)
        seen = stop + k_len - q_len  # keys after the chunk's last query are in its future
        scores = (q[:, :, start:stop].to(accurate) @ keys[:, :, :seen].mT) * scale
        position = torch.arange(start, stop, device=q.device) + (k_len - q_len)
        scores.masked_fill_(torch.arange(seen, device=q.device) > position[:, None], float("-inf"))
        probs = torch.softmax(scores, -1)
        n, m = -(-(stop - start) // q_block), -(-seen // k_block)
        probs = torch.nn.functional.pad(probs, (0, m * k_block - seen, 0, n * q_block - (stop - start)))
        tiles = probs.view(batch, heads, n, q_block, m, k_block)
        if pool == "max":
            out[:, :, first : first + n, :m] = tiles.amax((3, 5))
        else:
            inside = (torch.arange(first, first + n, device=q.device) * q_block + q_block).clamp(max=q_len)
            inside = inside - torch.arange(first, first + n, device=q.device) * q_block
            out[:, :, first : first + n, :m] = tiles.sum((3, 5)) / inside[:, None]
    return out.float()
