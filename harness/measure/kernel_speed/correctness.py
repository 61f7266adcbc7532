"""How far the output of a kernel is from float32 attention over its index, on a few of its rows of blocks."""

from __future__ import annotations

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
    sample, head, row = row_of_blocks
    kv_head = head // (q.shape[1] // k.shape[1])
    index_head = head // (q.shape[1] // index.counts.shape[1])
    blocks = index.row_blocks(sample, index_head, row)
    keys = (blocks[:, None] * index.k_block + torch.arange(index.k_block, device=q.device)).flatten()
    keys = keys[keys < index.k_len]
    positions = torch.arange(tokens.start, tokens.stop, device=q.device) + index.k_len - index.q_len
    scores = q[sample, head, tokens].float() @ k[sample, kv_head, keys].float().T * scale
    scores = scores.masked_fill(keys > positions[:, None], float("-inf"))
    return torch.softmax(scores, -1) @ v[sample, kv_head, keys].float()
