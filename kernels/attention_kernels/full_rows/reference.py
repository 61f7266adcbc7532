"""Dense attention of few queries as the formula reads: the oracle of the tests."""

from __future__ import annotations

from torch import Tensor

from attention_kernels.dense.reference import dense_reference

QUERIES = 64
"""Queries at a time, so that the scores of long prompts stay small."""


def full_rows_reference(q: Tensor, k: Tensor, v: Tensor, out: Tensor, *, scale: float) -> None:
    """Run `attention_kernels.full_rows.full_row_attention` in plain PyTorch, a KV head and QUERIES queries at a time; float64
    for float64 inputs, else float32."""
    group, past = q.shape[1] // k.shape[1], k.shape[2] - q.shape[2]
    for head in range(k.shape[1]):
        heads, kv = slice(head * group, (head + 1) * group), slice(head, head + 1)
        for first in range(0, q.shape[2], QUERIES):
            last = min(first + QUERIES, q.shape[2])
            seen = slice(0, last + past)
            part = dense_reference(q[:, heads, first:last], k[:, kv, seen], v[:, kv, seen], scale=scale)
            out[:, heads, first:last] = part
