"""Block-sparse attention in plain PyTorch that computes only the kept blocks: the oracle of the tests and the CPU path."""

from __future__ import annotations

import torch
from torch import Tensor

from attention_kernels.block_index import BlockIndex

CHUNK_BYTES = 4 << 20
"""Bytes gathered and scored at once. Small enough that the allocator hands out the same pages again: at 64 MiB half of a
call at 4k tokens went into fresh pages."""


def block_sparse_reference(q: Tensor, k: Tensor, v: Tensor, index: BlockIndex, *, scale: float) -> Tensor:
    """Compute `attention_kernels.block_sparse.block_sparse_attention` in plain PyTorch. Rows of like length are gathered
    together: K and V of their blocks [rows, width · k_block, D], one batched product.

    Softmax in float32, or float64 for float64 inputs.
    """
    batch, heads, q_len, dim = q.shape
    kv_heads, k_len, nb, mb = k.shape[1], k.shape[2], index.k_block, index.q_block
    accurate = torch.float64 if q.dtype == torch.float64 else torch.float32
    rows, cols = index.counts.shape[-1], -(-k_len // nb)
    pad_q, pad_k = rows * mb - q_len, cols * nb - k_len
    qb = torch.nn.functional.pad(q, (0, 0, 0, pad_q)).reshape(batch * heads * rows, mb, dim)
    kb, vb = (torch.nn.functional.pad(x, (0, 0, 0, pad_k)).reshape(batch * kv_heads * cols, nb, dim) for x in (k, v))
    out = torch.empty_like(qb)

    b, h, row = torch.meshgrid(torch.arange(batch), torch.arange(heads), torch.arange(rows), indexing="ij")
    index_h = h // (heads // index.counts.shape[1])
    first_block = ((b * kv_heads + h // (heads // kv_heads)) * cols).ravel().to(q.device)
    counts = index.counts.cpu()[b, index_h, row].ravel().long()
    lists = index.indices[b.to(q.device), index_h.to(q.device), row.to(q.device)].reshape(-1, index.indices.shape[-1]).long()
    position0 = (row.ravel() * mb + (k_len - q_len)).to(q.device)
    order = torch.argsort(counts, descending=True, stable=True)
    order = order[row.ravel()[order] < index.listed_rows]
    start = 0
    token = torch.arange(nb, device=q.device)
    while start < len(order):
        width = int(counts[order[start]])
        per_row = width * nb * (2 * dim + 2 * mb) * q.element_size()
        size = max(1, min(len(order) - start, CHUNK_BYTES // per_row))
        # rows at most a quarter shorter than the longest: little is computed for nothing
        near = int((counts[order[start : start + size]] >= width - max(1, width // 4)).sum())
        chosen = order[start : start + near].to(q.device)
        start += near
        listed = lists[chosen, :width]
        filled = torch.arange(width, device=q.device) < counts.to(q.device)[chosen, None]
        gathered = (first_block[chosen, None] + torch.where(filled, listed, 0)).ravel()
        keys = kb.index_select(0, gathered).view(near, width * nb, dim)
        values = vb.index_select(0, gathered).view(near, width * nb, dim)
        at = (torch.where(filled, listed, cols) * nb)[..., None] + token
        visible = at.view(near, 1, width * nb) <= (position0[chosen, None] + torch.arange(mb, device=q.device)).unsqueeze(-1)
        scores = torch.bmm(qb[chosen], keys.mT).to(accurate).mul_(scale).masked_fill_(~visible, float("-inf"))
        weights = torch.softmax(scores, -1).to(q.dtype)
        out[chosen] = torch.bmm(weights, torch.where((at < cols * nb).view(near, -1, 1), values, 0))
    return out.view(batch, heads, rows * mb, dim)[:, :, :q_len]
