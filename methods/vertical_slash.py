"""Where the last queries look: the attention of every key column (vertical) and of every diagonal (slash).

The estimate that MInference (arXiv 2407.02490) and FlexPrefill (arXiv 2502.20766) start from.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from kernels.block_index import causal_blocks
from methods.base import Grid

SCORES = 1 << 26
"""Attention scores held at once, twice over: 256 MiB each in float32 (a KV head of more is not split)."""


def vertical_slash(q: Tensor, k: Tensor, *, scale: float, last_q: int) -> tuple[Tensor, Tensor]:
    """Column and diagonal means of softmax(causal(q kᵀ · scale)) over the last `last_q` queries (all, where fewer).

    q [B,Hq,Q,D], k [B,Hkv,K,D] -> vertical, slash [B,Hq,K] in float32 (float64 stays), each summing to 1. vertical[j] is
    the attention to key j; slash[j] that on the diagonal which the last query meets at key j, so slash[K-1] is what
    tokens give to themselves. 2·Hq·last_q·K·D FLOPs; the scores exist for a few KV heads at a time.
    """
    if last_q < 1:
        raise ValueError(f"last_q={last_q}: must be at least 1 query")
    (batch, heads, q_len, dim), (kv_heads, k_len) = q.shape, k.shape[1:3]
    rows, group = min(last_q, q_len), heads // kv_heads
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    q = q[:, :, q_len - rows :].reshape(batch, kv_heads, group * rows, dim).to(wide) * scale
    future = torch.ones(rows, rows, dtype=torch.bool, device=q.device).triu(1)
    vertical = torch.empty(batch, kv_heads, group, k_len, dtype=wide, device=q.device)
    slash = torch.empty_like(vertical)
    step = max(1, SCORES // (batch * group * rows * k_len))
    for first in range(0, kv_heads, step):
        part = slice(first, first + step)
        scores = (q[:, part] @ k[:, part].to(wide).mT).unflatten(2, (group, rows))
        scores[..., k_len - rows :].masked_fill_(future, -float("inf"))
        # rows - 1 zeros in front: row r of a diagonal lies one place further right than row r - 1, so a view whose rows
        # are one element longer than they are has the diagonals as its columns
        scores = scores.softmax(-1)
        probs = pad(scores, (rows - 1, 0))
        strides = (*probs.stride()[:-2], probs.stride(-2) + 1, 1)
        vertical[:, part] = scores.mean(-2)
        slash[:, part] = probs.as_strided((*probs.shape[:-1], k_len), strides).mean(-2)
    return vertical.flatten(1, 2), slash.flatten(1, 2)


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
