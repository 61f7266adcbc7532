"""Which key blocks a query block may see, and which lie over its own tokens; the causal diagonal is at the bottom right."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


def causal_blocks(q_len: int, k_len: int, q_block: int, k_block: int, device: torch.device | str | None = None) -> Tensor:
    """Return how many key blocks each query block may see, int64 [Mq]; the causal diagonal is at the bottom right."""
    rows = -(-q_len // q_block)
    last = ((torch.arange(rows, device=device) + 1) * q_block).clamp(max=q_len) - 1 + (k_len - q_len)
    return last // k_block + 1


def diagonal_start(q_len: int, k_len: int, q_block: int, k_block: int, device: torch.device | str | None = None) -> Tensor:
    """Return the first key block that overlaps the positions of each query block's own tokens, int64 [Mq]."""
    rows = -(-q_len // q_block)
    return (torch.arange(rows, device=device) * q_block + (k_len - q_len)) // k_block


def causal_mask(q_len: int, k_len: int, q_block: int, k_block: int, device: torch.device | str | None = None) -> Tensor:
    """Return bool [Mq, Nk]: True where a key block is visible to some token of the query block. Kept for the next call: read
    only."""
    return _masks(q_len, k_len, q_block, k_block, torch.device(device or "cpu"))[0]


def diagonal_mask(q_len: int, k_len: int, q_block: int, k_block: int, device: torch.device | str | None = None) -> Tensor:
    """Return bool [Mq, Nk]: True on the blocks that every row keeps, those over the row's own tokens. Kept: read only."""
    return _masks(q_len, k_len, q_block, k_block, torch.device(device or "cpu"))[1]


@lru_cache(maxsize=16)
def _masks(q_len: int, k_len: int, q_block: int, k_block: int, device: torch.device) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(False):  # a tensor made in inference mode could not take part in training later
        cols = torch.arange(-(-k_len // k_block), device=device)
        causal = cols[None] < causal_blocks(q_len, k_len, q_block, k_block, device)[:, None]
        return causal, (cols[None] >= diagonal_start(q_len, k_len, q_block, k_block, device)[:, None]) & causal
