"""Dense attention of few queries by torch's own, on any device: the query heads of a KV head become rows of one head, so that
no key is repeated."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

QUERIES = 64
"""Queries at a time: their mask has QUERIES × query heads of a KV head × K entries."""


def full_rows_sdpa(q: Tensor, k: Tensor, v: Tensor, out: Tensor, *, scale: float) -> None:
    """Run `attention_kernels.full_rows.full_row_attention` by scaled_dot_product_attention, QUERIES queries at a time."""
    grouped, past = q.unflatten(1, (k.shape[1], -1)), k.shape[2] - q.shape[2]
    for first in range(0, q.shape[2], QUERIES):
        last = min(first + QUERIES, q.shape[2])
        seen = last + past
        rows = grouped[:, :, :, first:last]
        visible = torch.ones(last - first, seen, dtype=torch.bool, device=q.device).tril(first + past)
        mask = visible.expand(rows.shape[2], -1, -1).flatten(0, 1)
        part = scaled_dot_product_attention(rows.flatten(2, 3), k[:, :, :seen], v[:, :, :seen], attn_mask=mask, scale=scale)
        out[:, :, first:last] = part.unflatten(2, rows.shape[2:4]).flatten(1, 2)
