"""The blocks that a method keeps whatever it scores: sinks, a window, the last rows."""

from __future__ import annotations

from functools import lru_cache

import torch
from attention_kernels.block_index import causal_blocks, diagonal_start
from torch import Tensor

from methods.parts.row_budgets import budget_with_full_rows


def full_forced_rows(last_rows: int, density: float | None, q_len: int, k_len: int, q_block: int, k_block: int) -> int:
    """Return how many rows at the end `forced_blocks` keeps in full."""
    if density is None:
        return min(last_rows, -(-q_len // q_block))
    return budget_with_full_rows(density, last_rows, q_len, k_len, q_block, k_block, diagonal=True)[0]


@lru_cache(maxsize=32)
def forced_blocks(
    sinks: int,
    window: int,
    last_rows: int,
    density: float | None,
    q_len: int,
    k_len: int,
    q_block: int,
    k_block: int,
    device: torch.device,
) -> Tensor:
    """Return bool [Mq, Nk], the blocks that every head keeps; it is kept for the next call: read it only.

    They are the blocks over a row's own tokens, the first `sinks` blocks, the `window` latest (the row's own is the first of
    them), and all causal blocks of the last `last_rows` rows. With a density they are fewer, so that the scores have a say:
    full rows as many as `budget_with_full_rows` grants, and of each other row half of its budget, which is spent on its own
    blocks, then on the sinks, then on the latest.
    """
    shape = (q_len, k_len, q_block, k_block)
    causal, start = causal_blocks(*shape), diagonal_start(*shape)
    room, full = causal, full_forced_rows(last_rows, density, *shape)
    if density is not None:
        room = torch.tensor(budget_with_full_rows(density, last_rows, *shape, diagonal=True)[1]) // 2
    room = (room - (causal - start)).clamp(min=0)
    first = torch.minimum(start, room).clamp(max=sinks)
    latest = torch.minimum(start - first, room - first).clamp(max=max(0, window - 1))
    columns = torch.arange(-(-k_len // k_block))
    mask = (columns < first[:, None]) | (columns >= (start - latest)[:, None])
    mask[len(causal) - full :] = True
    with torch.inference_mode(False):  # a tensor made in inference mode could not take part in training later
        return (mask & (columns < causal[:, None])).to(device)
