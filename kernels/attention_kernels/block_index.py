"""BlockIndex: which key blocks each query block attends to, as a compact ascending list."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from attention_kernels.causal import causal_blocks, causal_mask, diagonal_mask, diagonal_start
from attention_kernels.mask_lists import mask_lists

__all__ = [
    "BlockIndex",
    "causal_blocks",
    "causal_mask",
    "causal_pairs",
    "causal_total",
    "diagonal_mask",
    "diagonal_start",
    "row_pairs",
]


@lru_cache(maxsize=256)
def causal_total(q_len: int, k_len: int, q_block: int, k_block: int) -> int:
    """Return the number of causal blocks of one head."""
    return int(causal_blocks(q_len, k_len, q_block, k_block).sum())


@lru_cache(maxsize=512)  # a prompt in chunks has a shape for each of them
def row_pairs(q_len: int, k_len: int, q_block: int, k_block: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return three float64 [Mq], of each query block: its queries, the blocks over its own tokens, and the (query, key) pairs
    in those that are no future. Kept for the next call: read only. All other causal blocks are whole, and before all of its
    queries."""
    shape = (q_len, k_len, q_block, k_block)
    starts = diagonal_start(*shape)
    first = torch.arange(len(starts)) * q_block
    queries = (first + q_block).clamp(max=q_len) - first
    before = first + (k_len - q_len) - starts * k_block  # keys between the start of the blocks and the first query
    pairs = queries * before + queries * (queries + 1) // 2
    with torch.inference_mode(False):
        return tuple(x.double().to(device) for x in (queries, causal_blocks(*shape) - starts, pairs))  # type: ignore[return-value]


@lru_cache(maxsize=64)
def _full_counts(q_len: int, k_len: int, q_block: int, k_block: int, rows: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return bool [Mq], which query blocks are among the last `rows`, and int32 [Mq], the causal blocks of each. Kept for the
    next call: read only."""
    with torch.inference_mode(False):
        counts = causal_blocks(q_len, k_len, q_block, k_block).to(torch.int32)
        return (torch.arange(len(counts)) >= len(counts) - rows).to(device), counts.to(device)


def causal_pairs(q_len: int, k_len: int) -> int:
    """Return the number of (query, key) pairs of one head that are no future."""
    return q_len * (k_len - q_len) + q_len * (q_len + 1) // 2


@dataclass(frozen=True)
class BlockIndex:
    """Key blocks kept for each (batch, head, query block).

    Attributes:
        counts: int32 [B, H, Mq], blocks kept in each row.
        indices: int32 [B, H, Mq, width], ascending block numbers, compact; entries past `counts` are 0.
        q_block, k_block: tokens per query and per key block.
        q_len, k_len: tokens of the queries and keys; query i stands at position i + k_len - q_len.
        full_rows: query blocks at the end that keep every causal block. `counts` says so, and they have no list: what
            `indices` hold there means nothing, and may be narrower than their counts. `with_last_rows` makes them.

    H is the number of query heads, or of KV heads where a GQA group shares one index.
    """

    counts: Tensor
    indices: Tensor
    q_block: int
    k_block: int
    q_len: int
    k_len: int
    full_rows: int = 0

    @classmethod
    def from_mask(cls, mask: Tensor, *, q_block: int, k_block: int, q_len: int, k_len: int, wait: bool = True) -> BlockIndex:
        """Make an index from a mask, bool [B, H, Mq, Nk]: blocks that are not causal are dropped, the diagonal is always kept.

        wait: for the device, once, to learn the longest row; without, `indices` are as wide as there are key blocks.
        """
        rows, cols = -(-q_len // q_block), -(-k_len // k_block)
        if mask.shape[-2:] != (rows, cols):
            raise ValueError(f"mask has {tuple(mask.shape[-2:])} blocks; {q_len} queries by {k_len} keys need ({rows}, {cols})")
        width = None if wait else cols
        counts, indices = mask_lists(mask, q_block=q_block, k_block=k_block, q_len=q_len, k_len=k_len, width=width)
        return cls(counts, indices, q_block, k_block, q_len, k_len)

    @classmethod
    def full(
        cls,
        batch: int,
        heads: int,
        *,
        q_block: int,
        k_block: int,
        q_len: int,
        k_len: int,
        device: torch.device | str | None = None,
    ) -> BlockIndex:
        """Make the index that keeps every causal block."""
        counts = causal_blocks(q_len, k_len, q_block, k_block, device).to(torch.int32)
        cols = torch.arange(-(-k_len // k_block), dtype=torch.int32, device=device)
        indices = torch.where(cols[None] < counts[:, None], cols[None], 0)
        rows = len(counts)
        return cls(
            counts.expand(batch, heads, rows).contiguous(),
            indices.expand(batch, heads, rows, len(cols)).contiguous(),
            q_block,
            k_block,
            q_len,
            k_len,
        )

    def to_mask(self) -> Tensor:
        """Return bool [B, H, Mq, Nk], True on the kept blocks."""
        cols, listed = -(-self.k_len // self.k_block), self.listed_rows
        counts, indices = self.counts[..., :listed], self.indices[..., :listed, :]
        filled = torch.arange(indices.shape[-1], device=counts.device) < counts[..., None]
        mask = torch.zeros(*self.counts.shape, cols + 1, dtype=torch.bool, device=counts.device)
        mask[..., :listed, :].scatter_(-1, torch.where(filled, indices, cols).long(), True)
        if self.full_rows:
            mask[..., listed:, :cols] = self._causal_mask()[listed:]
        return mask[..., :cols]

    def _causal_mask(self) -> Tensor:
        """Return bool [Mq, Nk], the causal blocks; read only."""
        return causal_mask(self.q_len, self.k_len, self.q_block, self.k_block, self.counts.device)

    @property
    def heads(self) -> int:
        """Return how many heads have a list of their own: query heads, or KV heads."""
        return self.counts.shape[1]

    @property
    def listed_rows(self) -> int:
        """Return how many query blocks have a list: all but the full ones at the end."""
        return self.counts.shape[-1] - self.full_rows

    @property
    def listed_queries(self) -> int:
        """Return how many queries stand in the query blocks that have a list: the first ones."""
        return min(self.listed_rows * self.q_block, self.q_len)

    def tiles(self) -> Tensor:
        """Return how many q_block × k_block tiles are to be computed, int64 [B, H]."""
        return self.counts.sum(-1)

    def density(self) -> Tensor:
        """Return kept causal blocks ÷ all causal blocks, float32 [B, H], on the index's device."""
        return self.tiles() / causal_total(self.q_len, self.k_len, self.q_block, self.k_block)

    def pairs(self) -> Tensor:
        """Return how many (query, key) pairs are attended to, float64 [B, H]."""
        queries, own, diagonal = row_pairs(self.q_len, self.k_len, self.q_block, self.k_block, self.counts.device)
        return ((self.counts - own) * (queries * self.k_block) + diagonal).sum(-1)

    def token_density(self) -> Tensor:
        """Return attended (query, key) pairs ÷ all causal pairs, float32 [B, H], on the index's device."""
        return (self.pairs() / causal_pairs(self.q_len, self.k_len)).float()

    def row_keys(self, row: int) -> Tensor:
        """Return bool [B, H, K]: keys in the kept blocks of one query block, the future of single queries among them."""
        if row >= self.listed_rows:
            blocks = self._causal_mask()[row].expand(*self.counts.shape[:2], -1)
        else:
            part = slice(row, row + 1)
            one = replace(self, counts=self.counts[:, :, part], indices=self.indices[:, :, part], full_rows=0)
            blocks = one.to_mask()[:, :, 0]
        return blocks.repeat_interleave(self.k_block, -1)[..., : self.k_len]

    def row_blocks(self, sample: int, head: int, row: int) -> Tensor:
        """Return int64 [count], the blocks of one row in ascending order. Waits for the device."""
        count = int(self.counts[sample, head, row])
        if row >= self.listed_rows:
            return torch.arange(count, device=self.counts.device)
        return self.indices[sample, head, row, :count].long()

    def validate(self) -> None:
        """Check everything on the host; ValueError says what is wrong."""
        shape = (self.q_len, self.k_len, self.q_block, self.k_block)
        rows = -(-self.q_len // self.q_block)
        if self.counts.dtype != torch.int32 or self.indices.dtype != torch.int32:
            raise ValueError(f"counts and indices must be int32, not {self.counts.dtype} and {self.indices.dtype}")
        if self.counts.shape[-1] != rows or self.indices.shape[:-1] != self.counts.shape:
            raise ValueError(
                f"counts {tuple(self.counts.shape)} and indices {tuple(self.indices.shape)} don't have {rows} query blocks"
            )
        if not 0 <= self.full_rows <= rows:
            raise ValueError(f"full_rows={self.full_rows}: must lie between 0 and the {rows} query blocks")
        causal, listed = causal_blocks(*shape), self.listed_rows
        if not bool((self.counts[..., listed:].cpu() == causal[listed:]).all()):
            raise ValueError("counts of full rows must be their causal blocks")
        counts, indices, causal = self.counts[..., :listed].cpu(), self.indices[..., :listed, :].cpu().long(), causal[:listed]
        if bool((counts < 1).any()) or bool((counts > causal).any()) or bool((counts > indices.shape[-1]).any()):
            raise ValueError("counts must lie between 1 and the row's causal blocks, and within the width of indices")
        filled = torch.arange(indices.shape[-1]) < counts[..., None]
        if bool((filled & ((indices < 0) | (indices >= causal[:, None]))).any()):
            raise ValueError("indices name a block that is not causal")
        if bool((filled[..., 1:] & (indices[..., 1:] <= indices[..., :-1])).any()):
            raise ValueError("indices must ascend within each row")
        if not bool((self.to_mask().cpu() | ~diagonal_mask(*shape)).all()):
            raise ValueError("every row must keep the blocks over its own tokens")

    def with_last_rows(self, rows: int) -> BlockIndex:
        """Return the same index, but the last `rows` query blocks, or all where these are fewer, keep every causal block and
        have no list. Does not wait for the device."""
        rows = min(rows, self.counts.shape[-1])
        if rows <= self.full_rows:
            return self
        full, causal = _full_counts(self.q_len, self.k_len, self.q_block, self.k_block, rows, self.counts.device)
        return replace(self, counts=torch.where(full, causal, self.counts), full_rows=rows)

    def with_all_lists(self) -> BlockIndex:
        """Return the same index with a list for every row, as wide as there are key blocks where some had none: for code that
        reads `indices` of all rows alike. Does not wait for the device."""
        if not self.full_rows:
            return self
        cols = torch.arange(-(-self.k_len // self.k_block), dtype=torch.int32, device=self.counts.device)
        indices = torch.nn.functional.pad(self.indices, (0, len(cols) - self.indices.shape[-1]))
        indices[..., self.listed_rows :, :] = torch.where(self._causal_mask()[self.listed_rows :], cols, 0)
        return replace(self, indices=indices, full_rows=0)

    def to(self, device: torch.device | str) -> BlockIndex:
        """Return the same index on another device."""
        return replace(self, counts=self.counts.to(device), indices=self.indices.to(device))
