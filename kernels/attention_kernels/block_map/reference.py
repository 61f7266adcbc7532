"""The pooled attention map in plain PyTorch, a few query blocks at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

CHUNK_BYTES = 128 << 20


def block_map_reference(
    q: Tensor, k: Tensor, *, q_block: int, k_block: int, scale: float, largest: bool, lse: Tensor | None
) -> Tensor:
    """Compute `attention_kernels.block_map.block_map` in plain PyTorch: the largest probability of each block, or their sum."""
    batch, heads, q_len, _ = q.shape
    k_len = k.shape[2]
    out = torch.zeros(batch, heads, -(-q_len // q_block), -(-k_len // k_block), dtype=_accurate(q), device=q.device)
    for start, stop, scores in _causal_scores(q, k, scale, q_block):
        if lse is None:
            probs = torch.softmax(scores, -1)
        else:
            probs = torch.exp(scores - lse[:, :, start:stop, None].to(scores.dtype))
        first, seen = start // q_block, scores.shape[-1]
        n, m = -(-(stop - start) // q_block), -(-seen // k_block)
        probs = torch.nn.functional.pad(probs, (0, m * k_block - seen, 0, n * q_block - (stop - start)))
        tiles = probs.view(batch, heads, n, q_block, m, k_block)
        out[:, :, first : first + n, :m] = tiles.amax((3, 5)) if largest else tiles.sum((3, 5))
    return out.float()


def log_sum_exp_reference(q: Tensor, k: Tensor, *, scale: float) -> Tensor:
    """Run `attention_kernels.block_map.log_sum_exp` in plain PyTorch."""
    return torch.cat([scores.logsumexp(-1) for _, _, scores in _causal_scores(q, k, scale, 64)], -1).float()


def _accurate(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _causal_scores(q: Tensor, k: Tensor, scale: float, q_block: int) -> Iterator[tuple[int, int, Tensor]]:
    """Return (start, stop, scores [B,Hq,stop-start,keys up to the last query]) for some query blocks at a time, -inf in the
    future."""
    accurate = _accurate(q)
    batch, heads, q_len, _ = q.shape
    k_len = k.shape[2]
    keys = k.to(accurate).repeat_interleave(heads // k.shape[1], 1)
    step = q_block * max(1, CHUNK_BYTES // (batch * heads * q_block * k_len * keys.element_size()))
    for start in range(0, q_len, step):
        stop = min(start + step, q_len)
        seen = stop + k_len - q_len
        scores = (q[:, :, start:stop].to(accurate) @ keys[:, :, :seen].mT) * scale
        position = torch.arange(start, stop, device=q.device) + (k_len - q_len)
        yield start, stop, scores.masked_fill_(torch.arange(seen, device=q.device) > position[:, None], float("-inf"))
