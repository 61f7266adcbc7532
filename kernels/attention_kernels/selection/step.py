"""Choosing key blocks for one step of decoding, from scores that are there: one row for each list, sequences of any length."""

from __future__ import annotations

import torch
from torch import Tensor

from attention_kernels.backends import resolve_backend
from attention_kernels.block_index import BlockIndex

MOST_COLUMNS = 65535
"""Blocks that the Triton kernel selects from: it holds a row in registers, past 8192 in part in local memory."""


def select_step(
    scores: Tensor,
    *,
    k_block: int,
    k_len: int,
    counts: Tensor | None = None,
    width: int | None = None,
    threshold: float | None = None,
    starts: Tensor | None = None,
    kernel: str = "auto",
) -> BlockIndex:
    """Choose the key blocks that score highest for the newest token: scores float32 [B, H, Nk], Nk = ⌈k_len / k_block⌉.

    Give one rule:
      counts, width: int32 [B], blocks that the lists of each sequence keep, at least 1 and at most its own blocks and `width`,
        which the index is wide.
      threshold: blocks whose share of the softmax over the sequence's blocks is above it; the index is Nk wide.
    The newest block is always kept, and counts. starts: int32 [B], where each sequence begins in a batch padded on the left;
    blocks are counted from there, and scores past a sequence's own blocks may be anything. Of equal scores the earlier block
    is kept; NaN ranks last. Nothing waits for the device.
    """
    batch, heads, blocks = scores.shape
    if (counts is None) == (threshold is None) or (counts is None) != (width is None):
        raise ValueError("give one rule: counts with width, or threshold")
    if blocks != -(-k_len // k_block):
        raise ValueError(f"scores have {blocks} blocks; {k_len} keys in blocks of {k_block} make {-(-k_len // k_block)}")
    if counts is not None and (counts.shape != (batch,) or counts.dtype != torch.int32):
        raise ValueError(f"counts is {counts.dtype} {tuple(counts.shape)}: must be int32 ({batch},)")
    if resolve_backend(kernel, scores) == "triton":
        if blocks > MOST_COLUMNS:
            raise ValueError(f"kernel=triton selects from {MOST_COLUMNS} key blocks at most, not {blocks}")
        from attention_kernels.selection.step_kernel import select_step_triton  # imported late: needs triton

        return select_step_triton(scores, k_block, k_len, counts, width or blocks, threshold, starts)
    column = torch.arange(blocks, device=scores.device)
    last = _last_block(k_block, k_len, starts, batch, scores.device)[:, None, None]
    own = column <= last
    if counts is None:
        assert threshold is not None
        probs = scores.masked_fill(~own, float("-inf")).softmax(-1)
        selected = ((probs > threshold) & own) | (column == last)
        return step_index(selected, blocks, k_block=k_block, k_len=k_len)
    assert width is not None
    ranks = scores.nan_to_num(nan=-3e38, posinf=3e38, neginf=-3e38).clamp(-3e38, 3e38)
    ranks = ranks.masked_fill(column == last, float("inf")).masked_fill(~own, float("-inf"))
    budget = counts[:, None, None].expand(batch, heads, 1).long()
    cut = ranks.topk(width, dim=-1).values.gather(-1, budget - 1)
    equal = (ranks == cut) & own
    better = ranks > cut
    room = budget - better.sum(-1, keepdim=True)
    return step_index(better | (equal & (equal.cumsum(-1) <= room)), width, k_block=k_block, k_len=k_len)


def _last_block(k_block: int, k_len: int, starts: Tensor | None, batch: int, device: torch.device) -> Tensor:
    """Return the newest block of each sequence, int64 [B]."""
    if starts is None:
        return torch.full((batch,), (k_len - 1) // k_block, dtype=torch.int64, device=device)
    return (k_len - 1 - starts.long()) // k_block


def step_index(selected: Tensor, width: int, *, k_block: int, k_len: int) -> BlockIndex:
    """Return the index of one step from its blocks, bool [B, H, Nk], at most `width` of them in a row. Any blocks will do, the
    newest among them or not. Nothing waits for the device."""
    columns = torch.arange(selected.shape[-1], dtype=torch.int32, device=selected.device).expand(selected.shape)
    place = torch.where(selected, selected.cumsum(-1) - 1, width)
    indices = torch.zeros(*selected.shape[:-1], width + 1, dtype=torch.int32, device=selected.device)
    indices = indices.scatter_(-1, place, columns)[..., :width].contiguous()
    counts = selected.sum(-1, dtype=torch.int32)
    return BlockIndex(counts[..., None], indices[..., None, :], q_block=1, k_block=k_block, q_len=1, k_len=k_len)
