"""What methods with a threshold share: the blocks they keep by decree, what a density leaves of those, and the rule that adds
blocks until a row's mass is reached."""

from __future__ import annotations

from functools import lru_cache

import torch
from attention_kernels.block_index import causal_blocks, diagonal_start
from attention_kernels.selection import row_budget
from torch import Tensor


def full_rows(last: int, q_len: int, q_block: int) -> int:
    """Query blocks that hold one of the last `last` queries."""
    return -(-q_len // q_block) - max(0, q_len - last) // q_block if last > 0 else 0


@lru_cache(maxsize=64)
def affordable(
    density: float, last_rows: int, q_len: int, k_len: int, q_block: int, k_block: int, diagonal: bool = False
) -> tuple[int, tuple[int, ...]]:
    """How many of the last `last_rows` rows can be kept in full, and the blocks that each row may keep then: Mq numbers.

    Full rows take at most half of the budget, density × all causal blocks; with `diagonal` the other rows' own blocks count
    in that half. What is left is spread over the other rows, a constant share of each. The density of the whole is as asked.
    """
    shape = (q_len, k_len, q_block, k_block)
    causal = causal_blocks(*shape).tolist()
    own = (causal_blocks(*shape) - diagonal_start(*shape)).tolist() if diagonal else [0] * len(causal)
    total, full, spent, others = sum(causal), 0, 0, sum(own)
    while full < min(last_rows, len(causal)):
        row = len(causal) - full - 1
        others -= own[row]
        if spent + causal[row] + others > density * total / 2:
            break
        full, spent = full + 1, spent + causal[row]
    rest = (density * total - spent) / max(1, total - spent)
    share = row_budget(rest, *shape)[: len(causal) - full]
    return full, (*share, *causal[len(share) :])


@lru_cache(maxsize=32)
def decreed(
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
    """bool [Mq, Nk], kept for the next call and read only: the blocks that every head keeps whatever it scores.

    The blocks over a row's own tokens, the first `sinks`, the `window` latest (the row's own is the first of them), and
    everything in the last `last_rows` rows. With a density it is less, so that the scores have a say: full rows as many as
    `affordable` grants, and of each other row half of its share, for its own blocks, then the sinks, then the latest.
    """
    shape = (q_len, k_len, q_block, k_block)
    causal, start = causal_blocks(*shape), diagonal_start(*shape)
    room, full = causal, min(last_rows, len(causal))
    if density is not None:
        full, share = affordable(density, last_rows, *shape, diagonal=True)
        room = torch.tensor(share) // 2
    room = (room - (causal - start)).clamp(min=0)
    first = torch.minimum(start, room).clamp(max=sinks)
    latest = torch.minimum(start - first, room - first).clamp(max=max(0, window - 1))
    cols = torch.arange(-(-k_len // k_block))
    kept = (cols < first[:, None]) | (cols >= (start - latest)[:, None])
    kept[len(causal) - full :] = True
    with torch.inference_mode(False):  # a tensor made in inference mode could not take part in training later
        return (kept & (cols < causal[:, None])).to(device)


def reach_mass(scores: Tensor, forced: Tensor, mass: float | Tensor) -> Tensor:
    """bool like scores [..., Mq, Nk] >= 0: `forced` [Mq, Nk], then the best others of each row, until what is kept makes up
    `mass` of the row's sum (a number, or [H, 1, 1] by head). The block that crosses it is kept; of equal ones the earlier.
    Never waits for the device."""
    wanted = mass * scores.sum(-1, keepdim=True)
    others = scores.masked_fill(forced, 0)
    best, order = others.sort(dim=-1, descending=True, stable=True)
    before = (scores * forced).sum(-1, keepdim=True) + best.cumsum(-1) - best
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, order, (before < wanted) & (best > 0)) | forced
