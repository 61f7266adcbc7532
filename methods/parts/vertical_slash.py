"""What is made of the last queries' attention to columns and diagonals (`attention_kernels.last_queries`): the largest, and a mask."""

from __future__ import annotations

import torch
from attention_kernels.block_index import causal_blocks
from torch import Tensor
from torch.nn.functional import pad

from methods.parts.base import Grid


def block_sums(x: Tensor, block: int) -> Tensor:
    """x [...,K] summed over blocks: [...,ceil(K/block)]."""
    return pad(x, (0, -x.shape[-1] % block)).unflatten(-1, (-1, block)).sum(-1)


def covering(x: Tensor, share: float) -> Tensor:
    """How many of x [...,K], largest first, it takes for their sum to pass `share`: int64 [...], at most K + 1."""
    return (x.sort(dim=-1, descending=True).values.cumsum(-1) <= share).sum(-1) + 1


def largest(x: Tensor, count: Tensor) -> Tensor:
    """bool like x [...,N]: the `count` [...] largest of each row, of equal ones the earlier."""
    return first_of(x.sort(dim=-1, descending=True, stable=True).indices, count)


def first_of(order: Tensor, count: Tensor) -> Tensor:
    """bool like order [...,N], a permutation of each row's places: the places that the first `count` [...] of it name."""
    taken = torch.arange(order.shape[-1], device=order.device) < count.unsqueeze(-1)
    return torch.zeros_like(taken).scatter_(-1, order, taken)


def vertical_slash_mask(columns: Tensor, diagonals: Tensor, grid: Grid) -> Tensor:
    """bool [...,Mq,Nk] from bool columns, diagonals [...,Nk]: block columns, and block diagonals by the column in which the
    last query block meets them (Nk - 1: the main one)."""
    last = causal_blocks(**grid, device=columns.device) - 1
    blocks = torch.arange(columns.shape[-1], device=columns.device)
    distance = (last[:, None] - blocks).clamp(min=0)  # the future is dropped when the index is made
    return columns.unsqueeze(-2) | diagonals.flip(-1)[..., distance]
