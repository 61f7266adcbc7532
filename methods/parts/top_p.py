"""Top-p over blocks: a row's best blocks until a share of its score is kept."""

from __future__ import annotations

import torch
from torch import Tensor


def top_p_mask(scores: Tensor, forced: Tensor, share: float | Tensor) -> Tensor:
    """Return bool [..., Mq, Nk]: `forced` [Mq, Nk], then the best other blocks of each row until `share` of its score is kept.

    scores [..., Mq, Nk] are at least 0. share: of the row's sum, one number or [H, 1, 1] by head. The block that crosses it is
    kept; of equal blocks the earlier comes first. Never waits for the device. Raises ValueError for a number that is no share.
    """
    target = _target(scores, share)
    best, order = scores.masked_fill(forced, 0).sort(dim=-1, descending=True, stable=True)
    before = (scores * forced).sum(-1, keepdim=True) + best.cumsum(-1) - best
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, order, (before < target) & (best > 0)) | forced


def late_top_p_mask(scores: Tensor, forced: Tensor, share: float | Tensor) -> Tensor:
    """Return `top_p_mask` with its running sum one block late: a block is kept by the sum before the one ahead of it.

    So the best of the others is always kept, and where the sum is reached, one block more than needed.
    """
    target = _target(scores, share)
    best, order = scores.masked_fill(forced, 0).sort(dim=-1, descending=True, stable=True)
    before = (scores * forced).sum(-1, keepdim=True) + best.cumsum(-1) - best - best.roll(1, -1)
    before[..., 0] = 0
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, order, (before < target) & (best > 0)) | forced


def _target(scores: Tensor, share: float | Tensor) -> Tensor:
    """Return what the blocks of each row must reach. Raises ValueError for a number that is no share."""
    if not isinstance(share, Tensor) and not 0 <= share <= 1:
        raise ValueError(f"share={share}: must be at least 0 and at most 1, the share of a row's score to keep")
    return share * scores.sum(-1, keepdim=True)
