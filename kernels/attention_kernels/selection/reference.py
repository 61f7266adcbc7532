"""From block scores to a BlockIndex: top-k, threshold, cumulative mass, in plain PyTorch on any device.

Top-k never waits for the device; threshold and mass do once, to learn how wide the index must be.
"""

from __future__ import annotations

import torch
from torch import Tensor

from attention_kernels.block_index import BlockIndex, causal_blocks, causal_mask, diagonal_mask
from attention_kernels.mask_lists import mask_lists
from attention_kernels.selection.budget import kept_counts

Shape = tuple[int, int, int, int]
"""q_len, k_len, q_block, k_block."""


def _ranks(scores: Tensor, shape: Shape) -> Tensor:
    """Return the scores to rank by, float32: the diagonal above all, blocks in the future below all, NaN with the lowest."""
    causal, diagonal = causal_mask(*shape, scores.device), diagonal_mask(*shape, scores.device)
    scores = torch.nan_to_num(scores.float(), nan=-3e38, posinf=3e38, neginf=-3e38).clamp(-3e38, 3e38)
    return scores.masked_fill(diagonal, float("inf")).masked_fill(~causal, -float("inf"))


def _best(ranks: Tensor, counts: Tensor, width: int, shape: Shape) -> BlockIndex:
    """Return the best `counts` [..., Mq] (at most `width`) columns of each row; of equal ones the earlier."""
    q_len, k_len, q_block, k_block = shape
    counts = counts.expand(ranks.shape[:-1])
    top = torch.topk(ranks, width, dim=-1).values
    last = top.gather(-1, counts.long().unsqueeze(-1) - 1)
    selected, equal = ranks > last, ranks == last
    room = counts - selected.sum(-1)
    selected = selected | (equal & (equal.cumsum(-1, dtype=torch.int32) <= room.unsqueeze(-1)))
    lists = mask_lists(selected, q_block=q_block, k_block=k_block, q_len=q_len, k_len=k_len, width=width)
    return BlockIndex(*lists, q_block, k_block, q_len, k_len)


def select_topk(
    scores: Tensor, budget: tuple[int, ...], *, q_block: int, k_block: int, q_len: int, k_len: int, full_rows: int = 0
) -> BlockIndex:
    """Choose the `budget[i]` best causal blocks of each row i of scores [B, H, Mq, Nk]; the diagonal is kept and counts inside
    the budget. Of equal scores the earlier block is kept. The last `full_rows` rows keep every causal block, whatever their
    budget (`BlockIndex.full_rows`); the index is as wide as the longest of the others."""
    shape = (q_len, k_len, q_block, k_block)
    if len(budget) != scores.shape[-2]:
        raise ValueError(f"budget has {len(budget)} rows, scores have {scores.shape[-2]}")
    counts, width = kept_counts(budget, shape, scores.device, full_rows)
    return _best(_ranks(scores, shape), counts, width, shape).with_last_rows(full_rows)


def select_threshold(probs: Tensor, threshold: float, *, q_block: int, k_block: int, q_len: int, k_len: int) -> BlockIndex:
    """Choose the blocks of probs [B, H, Mq, Nk] above `threshold`, and the diagonal."""
    return BlockIndex.from_mask(probs > threshold, q_block=q_block, k_block=k_block, q_len=q_len, k_len=k_len)


def select_mass(probs: Tensor, mass: float, *, q_block: int, k_block: int, q_len: int, k_len: int) -> BlockIndex:
    """Choose the smallest set of blocks, best first after the diagonal, whose share of the row's probs reaches `mass`."""
    shape = (q_len, k_len, q_block, k_block)
    ranks = _ranks(probs, shape)
    return _best(ranks, _mass_counts(ranks, probs, mass, shape), probs.shape[-1], shape)


def _mass_counts(ranks: Tensor, probs: Tensor, mass: float, shape: Shape) -> Tensor:
    """Return how many blocks reach `mass` of probs [..., Mq, Nk], taken in the order of `ranks`: int64 [..., Mq]."""
    causal = causal_mask(*shape, probs.device)
    order = ranks.sort(dim=-1, descending=True, stable=True).indices
    selected = probs.float().masked_fill(~causal, 0).nan_to_num().gather(-1, order)
    before = selected.cumsum(-1) - selected
    counts = (before < mass * selected.sum(-1, keepdim=True)).sum(-1)
    forced = diagonal_mask(*shape, probs.device).sum(-1)
    return torch.minimum(torch.maximum(counts, forced), causal_blocks(*shape, probs.device))


def one_key_head(q_heads: int, k_heads: int, share: int) -> bool:
    """Say whether query heads that share an index read the same keys. The mean of their scores is then the score of their mean,
    which costs a part of it."""
    return (q_heads // k_heads) % share == 0


def pooled_scores(q: Tensor, k: Tensor, *, scale: float, share: int = 1, combine: str = "mean") -> Tensor:
    """Return the products q [B, Hq, Mq, D] · k [B, Hk, Nk, D] × scale -> [B, Hq / share, Mq, Nk] in float32 (float64 stays)."""
    if q.dtype != torch.float64:
        q, k = q.float(), k.float()
    if combine == "mean" and one_key_head(q.shape[1], k.shape[1], share):
        q, share = q.unflatten(1, (-1, share)).mean(2), 1
    scores = (q.unflatten(1, (k.shape[1], -1)) @ k.unsqueeze(2).transpose(-1, -2)).flatten(1, 2) * scale
    if share == 1:
        return scores
    scores = scores.unflatten(1, (-1, share))
    return scores.mean(2) if combine == "mean" else scores.amax(2)


def select_from_pooled_reference(
    q: Tensor,
    k: Tensor,
    shape: Shape,
    *,
    scale: float,
    budget: tuple[int, ...] | None,
    threshold: float | None,
    mass: float | None,
    share: int,
    combine: str,
    max_blocks: int | None,
    full_rows: int = 0,
) -> BlockIndex:
    """Run `attention_kernels.selection.select_from_pooled` in plain PyTorch."""
    q_len, k_len, q_block, k_block = shape
    grid = {"q_block": q_block, "k_block": k_block, "q_len": q_len, "k_len": k_len}
    scores = pooled_scores(q, k, scale=scale, share=share, combine=combine)
    if budget is not None:
        return select_topk(scores, budget, **grid, full_rows=full_rows)
    causal, diagonal = causal_mask(*shape, q.device), diagonal_mask(*shape, q.device)
    probs = scores.masked_fill(~causal, -float("inf")).softmax(-1)
    ranks = _ranks(scores, shape)
    if mass is not None:
        counts = _mass_counts(ranks, probs, mass, shape)
    else:
        assert threshold is not None, "one of the three rules"
        counts = (((probs > threshold) | diagonal) & causal).sum(-1)
    width = scores.shape[-1]
    if max_blocks is not None:
        width = min(max_blocks, width)
    elif full_rows < counts.shape[-1]:
        width = int(counts[..., : counts.shape[-1] - full_rows].max())
    return _best(ranks, counts.clamp(max=width), width, shape).with_last_rows(full_rows)
