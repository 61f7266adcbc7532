"""From block scores to a BlockIndex: top-k, threshold, cumulative mass. Plain PyTorch on any device, without a host sync
where the width is known beforehand."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from kernels.block_index import BlockIndex, causal_blocks, causal_mask, diagonal_mask


@lru_cache(maxsize=256)
def _budget(density: float, q_len: int, k_len: int, q_block: int, k_block: int) -> tuple[int, ...]:
    causal = causal_blocks(q_len, k_len, q_block, k_block).tolist()
    kept: list[int] = []
    seen = used = 0
    for blocks in causal:
        seen += blocks
        k = min(blocks, max(1, round(density * seen) - used))
        used += k
        kept.append(k)
    return tuple(kept)


def row_budget(density: float, q_len: int, k_len: int, q_block: int, k_block: int, device: torch.device | str | None = None) -> Tensor:
    """Blocks to keep in each row, int64 [Mq]: the running total follows density × causal blocks so far, and a row keeps at
    least one. What that floor overspends in the first rows, later rows save."""
    return torch.tensor(_budget(float(density), q_len, k_len, q_block, k_block), dtype=torch.int64, device=device)


def _ranked(scores: Tensor, shape: tuple[int, int, int, int], width: int) -> tuple[Tensor, Tensor]:
    """Scores with the diagonal first and non-causal blocks last; their best `width` columns in descending order."""
    causal, diagonal = causal_mask(*shape, scores.device), diagonal_mask(*shape, scores.device)
    scores = torch.nan_to_num(scores.float(), nan=-3e38, posinf=3e38, neginf=-3e38)
    scores = scores.masked_fill(diagonal, float("inf")).masked_fill(~causal, -float("inf"))
    values, order = torch.sort(scores, dim=-1, descending=True, stable=True)
    return values[..., :width], order[..., :width]


def _compact(order: Tensor, counts: Tensor, cols: int, shape: tuple[int, int, int, int]) -> BlockIndex:
    """Ascending compact index of the first `counts` entries of each row of `order`."""
    q_len, k_len, q_block, k_block = shape
    filled = torch.arange(order.shape[-1], device=order.device) < counts[..., None]
    ascending = torch.where(filled, order, cols).sort(dim=-1).values
    indices = torch.where(ascending < cols, ascending, 0).to(torch.int32)
    return BlockIndex(counts.to(torch.int32).contiguous(), indices.contiguous(), q_block, k_block, q_len, k_len)


def select_topk(scores: Tensor, budget: Tensor, *, q_block: int, k_block: int, q_len: int, k_len: int) -> BlockIndex:
    """The `budget` [Mq] best causal blocks of each row of scores [B, H, Mq, Nk]; the diagonal is kept and counts inside
    the budget. Ties go to the lower block."""
    shape = (q_len, k_len, q_block, k_block)
    forced = diagonal_mask(*shape, scores.device).sum(-1)
    counts = torch.maximum(budget.to(scores.device), forced).expand(scores.shape[:-1])
    _, order = _ranked(scores, shape, scores.shape[-1])
    return _compact(order, counts, scores.shape[-1], shape)


def select_threshold(probs: Tensor, threshold: float, *, q_block: int, k_block: int, q_len: int, k_len: int) -> BlockIndex:
    """Blocks of probs [B, H, Mq, Nk] above `threshold`, and the diagonal."""
    return BlockIndex.from_mask(probs > threshold, q_block=q_block, k_block=k_block, q_len=q_len, k_len=k_len)


def select_mass(probs: Tensor, mass: float, *, q_block: int, k_block: int, q_len: int, k_len: int) -> BlockIndex:
    """The smallest set of blocks, best first after the diagonal, whose share of the row's probs reaches `mass`."""
    shape = (q_len, k_len, q_block, k_block)
    causal = causal_mask(*shape, probs.device)
    _, order = _ranked(probs, shape, probs.shape[-1])
    kept = probs.float().masked_fill(~causal, 0).nan_to_num().gather(-1, order)
    before = kept.cumsum(-1) - kept
    counts = (before < mass * kept.sum(-1, keepdim=True)).sum(-1)
    forced = diagonal_mask(*shape, probs.device).sum(-1)
    counts = torch.minimum(torch.maximum(counts, forced), causal_blocks(*shape, probs.device))
    return _compact(order, counts, probs.shape[-1], shape)
