"""From block scores to a BlockIndex: top-k, threshold, cumulative mass, in plain PyTorch on any device.

Top-k never waits for the device; threshold does once, to learn how wide the index must be.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from kernels.block_index import BlockIndex, causal_blocks, causal_mask, diagonal_mask


@lru_cache(maxsize=256)
def row_budget(density: float, q_len: int, k_len: int, q_block: int, k_block: int) -> tuple[int, ...]:
    """Blocks to keep in each of the Mq rows: the running total follows density × causal blocks so far, and a row keeps at
    least one. What that floor overspends in the first rows, later rows save."""
    kept: list[int] = []
    seen = used = 0
    for blocks in causal_blocks(q_len, k_len, q_block, k_block).tolist():
        seen += blocks
        k = min(blocks, max(1, round(density * seen) - used))
        used += k
        kept.append(k)
    return tuple(kept)


@lru_cache(maxsize=64)
def _counts(budget: tuple[int, ...], shape: tuple[int, int, int, int], device: torch.device) -> tuple[Tensor, int]:
    """Blocks a row keeps, the forced ones included: int64 [Mq] on the device, and the largest of them. Made once for all
    layers: small tensors made on the host at every call cost more than the selection itself."""
    forced = diagonal_mask(*shape).sum(-1).tolist()
    counts = [max(k, f) for k, f in zip(budget, forced, strict=True)]
    with torch.inference_mode(False):
        return torch.tensor(counts, dtype=torch.int64, device=device), max(counts)


def _ranked(scores: Tensor, shape: tuple[int, int, int, int], width: int) -> Tensor:
    """The best `width` columns of each row in descending order: the diagonal first, blocks in the future last."""
    causal, diagonal = causal_mask(*shape, scores.device), diagonal_mask(*shape, scores.device)
    scores = torch.nan_to_num(scores.float(), nan=-3e38, posinf=3e38, neginf=-3e38)
    scores = scores.masked_fill(diagonal, float("inf")).masked_fill(~causal, -float("inf"))
    return torch.topk(scores, width, dim=-1).indices


def _compact(order: Tensor, counts: Tensor, cols: int, shape: tuple[int, int, int, int]) -> BlockIndex:
    """Ascending compact index of the first `counts` entries of each row of `order`."""
    q_len, k_len, q_block, k_block = shape
    filled = torch.arange(order.shape[-1], device=order.device) < counts[..., None]
    ascending = torch.where(filled, order, cols).sort(dim=-1).values
    indices = torch.where(ascending < cols, ascending, 0).to(torch.int32)
    return BlockIndex(counts.to(torch.int32).contiguous(), indices.contiguous(), q_block, k_block, q_len, k_len)


def select_topk(scores: Tensor, budget: tuple[int, ...], *, q_block: int, k_block: int, q_len: int, k_len: int) -> BlockIndex:
    """The `budget[i]` best causal blocks of each row i of scores [B, H, Mq, Nk]; the diagonal is kept and counts inside the
    budget. Which of equal scores is kept is left to the device. The index is as wide as its longest row."""
    shape = (q_len, k_len, q_block, k_block)
    if len(budget) != scores.shape[-2]:
        raise ValueError(f"budget has {len(budget)} rows, scores have {scores.shape[-2]}")
    counts, width = _counts(budget, shape, scores.device)
    return _compact(_ranked(scores, shape, width), counts.expand(scores.shape[:-1]), scores.shape[-1], shape)


def select_threshold(probs: Tensor, threshold: float, *, q_block: int, k_block: int, q_len: int, k_len: int) -> BlockIndex:
    """Blocks of probs [B, H, Mq, Nk] above `threshold`, and the diagonal."""
    return BlockIndex.from_mask(probs > threshold, q_block=q_block, k_block=k_block, q_len=q_len, k_len=k_len)


def select_mass(probs: Tensor, mass: float, *, q_block: int, k_block: int, q_len: int, k_len: int) -> BlockIndex:
    """The smallest set of blocks, best first after the diagonal, whose share of the row's probs reaches `mass`."""
    shape = (q_len, k_len, q_block, k_block)
    causal = causal_mask(*shape, probs.device)
    order = _ranked(probs, shape, probs.shape[-1])
    kept = probs.float().masked_fill(~causal, 0).nan_to_num().gather(-1, order)
    before = kept.cumsum(-1) - kept
    counts = (before < mass * kept.sum(-1, keepdim=True)).sum(-1)
    forced = diagonal_mask(*shape, probs.device).sum(-1)
    counts = torch.minimum(torch.maximum(counts, forced), causal_blocks(*shape, probs.device))
    return _compact(order, counts, probs.shape[-1], shape)
