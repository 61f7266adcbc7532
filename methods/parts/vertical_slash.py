"""Choosing block columns and block diagonals by the last queries' attention to them (`attention_kernels.last_queries`)."""

from __future__ import annotations

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
    last = causal_blocks(**grid, device=columns.device) - 1
    blocks = torch.arange(columns.shape[-1], device=columns.device)
    distance = (last[:, None] - blocks).clamp(min=0)  # the future is dropped when the index is made
    return columns.unsqueeze(-2) | diagonals.flip(-1)[..., distance]
