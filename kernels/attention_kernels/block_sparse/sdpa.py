"""Block-sparse attention through torch's own attention: each row's blocks are gathered and handed to SDPA (any device)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from attention_kernels.block_index import BlockIndex

CHUNK_BYTES = 4 << 20
"""Bytes gathered at once: small enough to stay in a CPU's cache until they are used."""


def block_sparse_sdpa(q: Tensor, k: Tensor, v: Tensor, index: BlockIndex, *, scale: float) -> Tensor:
    """Run `attention_kernels.block_sparse.block_sparse_attention` with torch's SDPA. Rows that keep equally many blocks go
    together, as a batch of short attentions over K and V of their blocks [rows, 1, count · k_block, D]; scores are never
    stored."""
    batch, heads, q_len, dim = q.shape
    kv_heads, k_len, mb, nb = k.shape[1], k.shape[2], index.q_block, index.k_block
    rows, cols = index.counts.shape[-1], -(-k_len // nb)
    qb = pad(q, (0, 0, 0, rows * mb - q_len)).reshape(batch * heads * rows, 1, mb, dim)
    kb, vb = (pad(x, (0, 0, 0, cols * nb - k_len)).reshape(batch * kv_heads * cols, nb * dim) for x in (k, v))
    out = torch.empty_like(qb)
    shared = heads // index.counts.shape[1]  # query heads that have one index
    counts = index.counts.repeat_interleave(shared, 1).flatten()
    lists = index.indices.repeat_interleave(shared, 1).flatten(0, 2)
    first = torch.arange(batch * kv_heads, device=q.device).repeat_interleave(heads // kv_heads * rows) * cols
    position = (torch.arange(rows, device=q.device) * mb + (k_len - q_len)).repeat(batch * heads)
    aligned = mb == nb and (k_len - q_len) % nb == 0  # then the last block is the diagonal one, the same triangle for all
    listed = torch.arange(len(counts), device=q.device).view(-1, rows)[:, : index.listed_rows].flatten()
    for count, chosen in _groups(counts, listed, CHUNK_BYTES // (2 * nb * dim * q.element_size())):
        blocks = lists[chosen, :count]
        at = (first[chosen, None] + blocks).flatten()
        keys, values = (x.index_select(0, at).view(len(chosen), 1, count * nb, dim) for x in (kb, vb))
        mask = _triangle(mb, count * nb, q.device) if aligned else _visible(blocks, position[chosen], mb, nb)
        out[chosen] = scaled_dot_product_attention(qb[chosen], keys, values, attn_mask=mask, scale=scale)
    return out.view(batch, heads, rows * mb, dim)[:, :, :q_len]


def _groups(counts: Tensor, listed: Tensor, blocks: int) -> Iterator[tuple[int, Tensor]]:
    """Return (count, rows that keep so many blocks) of the rows `listed`, at most about `blocks` blocks at a time."""
    order = listed[torch.argsort(counts[listed], stable=True)]
    values, sizes = torch.unique_consecutive(counts[order], return_counts=True)
    start = 0
    for count, size in zip(values.tolist(), sizes.tolist(), strict=True):
        step = max(1, blocks // count)
        for begin in range(start, start + size, step):
            yield count, order[begin : min(begin + step, start + size)]
        start += size


def _triangle(queries: int, keys: int, device: torch.device) -> Tensor:
    """Return bool [1,1,queries,keys]: all keys but the future of the last `queries` of them."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)[None, None]


def _visible(blocks: Tensor, position: Tensor, mb: int, nb: int) -> Tensor:
    """Return bool [rows,1,mb,count·nb]: keys that are not in a query's future, for `blocks` [rows,count] and queries from
    `position` [rows] on."""
    token = (blocks[..., None] * nb + torch.arange(nb, device=blocks.device)).flatten(1)
    query = position[:, None] + torch.arange(mb, device=blocks.device)
    return (token[:, None, :] <= query[..., None])[:, None]
