"""How far the output of a kernel, and its gradients, are from float32 attention over its index, on a few of its blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import inf, isfinite

import torch
from attention_kernels.block_index import BlockIndex
from torch import Tensor

TOLERANCE = {torch.float64: 1e-6, torch.float32: 5e-3, torch.float16: 1e-2, torch.bfloat16: 2e-2}
"""Relative error above which a row is held back; float32 kernels may multiply in TF32."""


@torch.inference_mode()
def relative_error(q: Tensor, k: Tensor, v: Tensor, index: BlockIndex, out: Tensor, *, scale: float) -> float:
    """Return |out - exact| ÷ |exact| (Frobenius) over the first, middle and last query block of three heads of one sequence.

    The sequence is the last. Infinite where out [B,Hq,Q,D] isn't finite, anywhere. `index` has the query heads or the KV
    heads. Waits for the device.
    """
    if not isfinite(float(out.sum(dtype=torch.float32))):  # a sum: it needs no memory of the size of out
        return inf
    heads, rows = q.shape[1], index.counts.shape[2]
    sample = q.shape[0] - 1
    wrong = size = 0.0
    for head in sorted({0, heads // 2, heads - 1}):
        for row in sorted({0, rows // 2, rows - 1}):
            first, last = row * index.q_block, min((row + 1) * index.q_block, index.q_len)
            exact = _exact(q, k, v, index, (sample, head, row), slice(first, last), scale)
            wrong += float((out[sample, head, first:last].float() - exact).square().sum())
            size += float(exact.square().sum())
    return wrong**0.5 / max(size, 1e-30) ** 0.5


def _exact(
    q: Tensor, k: Tensor, v: Tensor, index: BlockIndex, row_of_blocks: tuple[int, int, int], tokens: slice, scale: float
) -> Tensor:
    """Return the attention of some query tokens of one row of blocks (sample, head, row) to the keys that the index keeps.

    float32 [tokens, D].
    """
    sample, head, _ = row_of_blocks
    keys, weights = _weights(q, k, index, row_of_blocks, tokens, scale)
    return weights @ v[sample, head // (q.shape[1] // k.shape[1]), keys].float()


def _weights(
    q: Tensor, k: Tensor, index: BlockIndex, row_of_blocks: tuple[int, int, int], tokens: slice, scale: float
) -> tuple[Tensor, Tensor]:
    """Return the keys int64 [n] that the index keeps for some query tokens of one row of blocks (sample, head, row), and their
    weights, float32 [tokens, n]."""
    sample, head, row = row_of_blocks
    kv_head = head // (q.shape[1] // k.shape[1])
    blocks = index.row_blocks(sample, head // (q.shape[1] // index.counts.shape[1]), row)
    keys = (blocks[:, None] * index.k_block + torch.arange(index.k_block, device=q.device)).flatten()
    keys = keys[keys < index.k_len]
    positions = torch.arange(tokens.start, tokens.stop, device=q.device) + index.k_len - index.q_len
    scores = q[sample, head, tokens].float() @ k[sample, kv_head, keys].float().T * scale
    scores = scores.masked_fill(keys > positions[:, None], float("-inf"))
    return keys, torch.softmax(scores, -1)


@torch.inference_mode()
def gradient_error(
    q: Tensor, k: Tensor, v: Tensor, grad: Tensor, index: BlockIndex, results: Sequence[Tensor], *, scale: float
) -> float:
    """Return the largest |result - exact| ÷ |exact| of the output, dQ, dK and dV, the `results` for the gradient `grad` of the
    output.

    Output and dQ as in `relative_error`; dK and dV over the middle and the last key block of the first and the last KV head.
    Infinite where one of them isn't finite, anywhere. Waits for the device.
    """
    out, *derived = results
    if not all(isfinite(float(x.sum(dtype=torch.float32))) for x in derived):
        return inf
    sample, heads, rows = q.shape[0] - 1, q.shape[1], index.counts.shape[2]
    group, cols = heads // k.shape[1], -(-index.k_len // index.k_block)
    wrong, size = [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]

    def compare(number: int, part: Tensor, exact: Tensor) -> None:
        wrong[number] += float((part.float() - exact).square().sum())
        size[number] += float(exact.square().sum())

    for head in sorted({0, heads // 2, heads - 1}):
        for row in sorted({0, rows // 2, rows - 1}):
            tokens, keys, _, by_scores = _row_gradients(q, k, v, grad, index, (sample, head, row), scale)
            compare(0, derived[0][sample, head, tokens], by_scores @ k[sample, head // group, keys].float())
    for kv_head in sorted({0, k.shape[1] - 1}):
        for col in sorted({cols // 2, cols - 1}):
            first, last = col * index.k_block, min((col + 1) * index.k_block, index.k_len)
            exact = torch.zeros(2, last - first, q.shape[3], device=q.device)
            for head in range(kv_head * group, (kv_head + 1) * group):
                for row in _rows_with(index, sample, head // (heads // index.counts.shape[1]), col):
                    tokens, keys, weights, by_scores = _row_gradients(q, k, v, grad, index, (sample, head, row), scale)
                    own = (keys >= first) & (keys < last)
                    exact[0] += by_scores[:, own].T @ q[sample, head, tokens].float()
                    exact[1] += weights[:, own].T @ grad[sample, head, tokens].float()
            for number in (1, 2):
                compare(number, derived[number][sample, kv_head, first:last], exact[number - 1])
    errors = [part**0.5 / max(whole, 1e-30) ** 0.5 for part, whole in zip(wrong, size, strict=True)]
    return max(relative_error(q, k, v, index, out, scale=scale), *errors)


def _row_gradients(
    q: Tensor, k: Tensor, v: Tensor, grad: Tensor, index: BlockIndex, row_of_blocks: tuple[int, int, int], scale: float
) -> tuple[slice, Tensor, Tensor, Tensor]:
    """Return the query tokens of one row of blocks (sample, head, row), its keys int64 [n], their weights and the gradient of
    the products q·k, float32 [tokens, n]."""
    sample, head, row = row_of_blocks
    tokens = slice(row * index.q_block, min((row + 1) * index.q_block, index.q_len))
    keys, weights = _weights(q, k, index, row_of_blocks, tokens, scale)
    by_weights = grad[sample, head, tokens].float() @ v[sample, head // (q.shape[1] // k.shape[1]), keys].float().T
    return tokens, keys, weights, weights * (by_weights - (weights * by_weights).sum(-1, keepdim=True)) * scale


def _rows_with(index: BlockIndex, sample: int, head: int, col: int) -> list[int]:
    """Return the rows of blocks that keep a key block."""
    one = slice(sample, sample + 1), slice(head, head + 1)
    own = replace(index, counts=index.counts[one], indices=index.indices[one])
    return [int(row) for row in own.to_mask()[0, 0, :, col].nonzero()[:, 0].tolist()]
