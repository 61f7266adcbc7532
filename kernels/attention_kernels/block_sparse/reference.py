"""Block-sparse attention in plain PyTorch that computes only the kept blocks: the oracle of the tests and the CPU path."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from attention_kernels.block_index import BlockIndex

CHUNK_BYTES = 4 << 20
"""Bytes gathered and scored at once. Small enough that the allocator hands out the same pages again: at 64 MiB half of a
call at 4k tokens went into fresh pages."""


@dataclass(frozen=True)
class RowGroup:
    """Rows of like length, which are computed together.

    Attributes:
        rows: int64 [n], places in `query_blocks`.
        blocks: int64 [n · width], places in `key_blocks` of the blocks of each; block 0 of its head fills a list up.
        real: bool [n, width · k_block, 1], True for keys of the row's own list.
        visible: bool [n, q_block, width · k_block], True for those of them that are no query's future.
    """

    rows: Tensor
    blocks: Tensor
    real: Tensor
    visible: Tensor


def query_blocks(q: Tensor, index: BlockIndex) -> Tensor:
    """Return q [B, H, Q, D] as [B · H · Mq, q_block, D], filled up with zeros."""
    return _blocks(q, index.q_block)


def key_blocks(k: Tensor, index: BlockIndex) -> Tensor:
    """Return k or v [B, Hkv, K, D] as [B · Hkv · Nk, k_block, D], filled up with zeros."""
    return _blocks(k, index.k_block)


def _blocks(x: Tensor, size: int) -> Tensor:
    count = -(-x.shape[2] // size)
    return pad(x, (0, 0, 0, count * size - x.shape[2])).reshape(-1, size, x.shape[3])


def row_groups(q: Tensor, k: Tensor, index: BlockIndex, *, full: bool = False) -> Iterator[RowGroup]:
    """Return the listed rows of all heads in groups, the longest first, so that one group takes about CHUNK_BYTES; with `full`
    also the full ones, whose list is that of all blocks."""
    batch, heads, q_len, dim = q.shape
    kv_heads, k_len, nb, mb = k.shape[1], k.shape[2], index.k_block, index.q_block
    rows, cols = index.counts.shape[-1], -(-k_len // nb)
    b, h, row = torch.meshgrid(torch.arange(batch), torch.arange(heads), torch.arange(rows), indexing="ij")
    index_h = h // (heads // index.counts.shape[1])
    first_block = ((b * kv_heads + h // (heads // kv_heads)) * cols).ravel().to(q.device)
    counts = index.counts.cpu()[b, index_h, row].ravel().long()
    lists = index.indices[b.to(q.device), index_h.to(q.device), row.to(q.device)].reshape(-1, index.indices.shape[-1]).long()
    position0 = (row.ravel() * mb + (k_len - q_len)).to(q.device)
    order = torch.argsort(counts, descending=True, stable=True)
    listed = row.ravel()[order] < index.listed_rows
    token = torch.arange(nb, device=q.device)
    for part, has_list in ((order[listed], True), (order[~listed] if full else order[:0], False)):
        start = 0
        while start < len(part):
            width = int(counts[part[start]])
            per_row = width * nb * (2 * dim + 2 * mb) * q.element_size()
            size = max(1, min(len(part) - start, CHUNK_BYTES // per_row))
            # rows at most a quarter shorter than the longest: little is computed for nothing
            near = int((counts[part[start : start + size]] >= width - max(1, width // 4)).sum())
            chosen = part[start : start + near].to(q.device)
            start += near
            steps = torch.arange(width, device=q.device)
            blocks = lists[chosen, :width] if has_list else steps.expand(near, width)
            filled = steps < counts.to(q.device)[chosen, None]
            gathered = (first_block[chosen, None] + torch.where(filled, blocks, 0)).ravel()
            at = (torch.where(filled, blocks, cols) * nb)[..., None] + token
            query = (position0[chosen, None] + torch.arange(mb, device=q.device)).unsqueeze(-1)
            visible = at.view(near, 1, width * nb) <= query
            yield RowGroup(chosen, gathered, (at < cols * nb).view(near, -1, 1), visible)


def block_sparse_reference(q: Tensor, k: Tensor, v: Tensor, index: BlockIndex, *, scale: float) -> Tensor:
    """Compute `attention_kernels.block_sparse.block_sparse_attention` in plain PyTorch. Rows of like length are gathered
    together: K and V of their blocks [rows, width · k_block, D], one batched product.

    Softmax in float32, or float64 for float64 inputs.
    """
    batch, heads, q_len, dim = q.shape
    accurate = torch.float64 if q.dtype == torch.float64 else torch.float32
    qb, kb, vb = query_blocks(q, index), key_blocks(k, index), key_blocks(v, index)
    out = torch.empty_like(qb)
    for group in row_groups(q, k, index):
        keys, values = (x.index_select(0, group.blocks).view(len(group.rows), -1, dim) for x in (kb, vb))
        scores = torch.bmm(qb[group.rows], keys.mT).to(accurate).mul_(scale).masked_fill_(~group.visible, float("-inf"))
        weights = torch.softmax(scores, -1).to(q.dtype)
        out[group.rows] = torch.bmm(weights, torch.where(group.real, values, 0))
    return out.view(batch, heads, -1, dim)[:, :, :q_len]
