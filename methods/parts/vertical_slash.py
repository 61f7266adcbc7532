"""Choosing block columns and block diagonals by the last queries' attention to them (`attention_kernels.last_queries`)."""

from __future__ import annotations

from functools import lru_cache

import torch
from attention_kernels.block_index import causal_blocks
from torch import Tensor
from torch.nn.functional import pad

from methods.parts.base import Grid


def block_sums(x: Tensor, block: int) -> Tensor:
    """Return x [...,K] summed over blocks: [...,ceil(K/block)]."""
    return pad(x, (0, -x.shape[-1] % block)).unflatten(-1, (-1, block)).sum(-1)


def count_to_pass(x: Tensor, share: float) -> Tensor:
    """Return how many of x [...,K], largest first, it takes for their sum to pass `share`: int64 [...], at most K + 1."""
    return (x.sort(dim=-1, descending=True).values.cumsum(-1) <= share).sum(-1) + 1


def largest_mask(x: Tensor, count: Tensor) -> Tensor:
    """Return bool [...,N], the `count` [...] largest of each row of x [...,N], of equal ones the earlier."""
    return first_ranked(x.sort(dim=-1, descending=True, stable=True).indices, count)


def first_ranked(order: Tensor, count: Tensor) -> Tensor:
    """Return bool [...,N], the places among the first `count` [...] of order [...,N], a permutation of each row's places."""
    taken = torch.arange(order.shape[-1], device=order.device) < count.unsqueeze(-1)
    return torch.zeros_like(taken).scatter_(-1, order, taken)


def vertical_slash_mask(columns: Tensor, diagonals: Tensor, grid: Grid) -> Tensor:
    """Return bool [...,Mq,Nk] from block columns and block diagonals, bool [...,Nk] both.

    A diagonal is numbered by the column in which the last query block meets it (Nk - 1: the main one).
    """
    return columns.unsqueeze(-2) | diagonals.flip(-1)[..., _distances(**grid, device=columns.device)]


@lru_cache(maxsize=4)  # of long prompts they are large; layers follow one another
def _distances(q_block: int, k_block: int, q_len: int, k_len: int, device: torch.device) -> Tensor:
    """Return how far before its last one each block of a row is, int64 [Mq,Nk]; 0 in the future, which is dropped when the
    index is made. Kept for the next layers: read only."""
    with torch.inference_mode(False):  # a tensor made in inference mode could not take part in training later
        last = causal_blocks(q_len, k_len, q_block, k_block, device) - 1
        return (last[:, None] - torch.arange(-(-k_len // k_block), device=device)).clamp(min=0)
