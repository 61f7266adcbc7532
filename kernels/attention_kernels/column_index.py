"""ColumnIndex: key blocks of each query block, and single key columns beside them that all query blocks of a head share."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from attention_kernels.block_index import BlockIndex, causal_pairs, causal_total, diagonal_start, row_pairs


@dataclass(frozen=True)
class ColumnIndex:
    """A query block attends to its kept blocks, and to those of the head's columns that lie before its own tokens.

    Columns inside a kept block of a row are the block's: they are not attended to twice. What is left is "open". Since a row
    keeps the blocks over its own tokens, no open column is in the future of any of its queries.

    Attributes:
        blocks: the blocks, of H heads.
        columns: int32 [B, H, V], ascending key positions, compact; entries past column_counts are k_len.
        column_counts: int32 [B, H].
        open: int32 [B, H, Mq, ceil(V / 32)], bit c % 32 of word c // 32 says whether column c is open in the row.
        open_counts: int32 [B, H, Mq], how many are.
        reach: int32 [B, H, Mq], entries of `columns` up to the row's last open one.
        by_row: whether each row has a choice of its own among the columns: `open` is then any part of what else it would be.

    `open` and what counts it follow from the others: `attention_kernels.open_columns.with_columns` makes them, `with_row_keys`
    where rows choose by themselves. Names as in BlockIndex.
    """

    blocks: BlockIndex
    columns: Tensor
    column_counts: Tensor
    open: Tensor
    open_counts: Tensor
    reach: Tensor
    by_row: bool = False

    @property
    def q_block(self) -> int:
        return self.blocks.q_block

    @property
    def k_block(self) -> int:
        return self.blocks.k_block

    @property
    def q_len(self) -> int:
        return self.blocks.q_len

    @property
    def k_len(self) -> int:
        return self.blocks.k_len

    @property
    def heads(self) -> int:
        """Return how many heads have a list of their own: query heads, or KV heads."""
        return self.blocks.heads

    def tiles(self) -> Tensor:
        """Return how many q_block × k_block tiles are to be computed, int64 [B, H]: blocks, and open columns gathered k_block
        at a time. A kernel that walks the head's columns up to `reach` and masks those that are not open, as Triton's does,
        computes a few more."""
        return self.blocks.tiles() + ((self.open_counts + self.k_block - 1) // self.k_block).sum(-1)

    def density(self) -> Tensor:
        """Return tiles ÷ all causal blocks, float32 [B, H], on the index's device."""
        return self.tiles() / causal_total(self.q_len, self.k_len, self.q_block, self.k_block)

    def pairs(self) -> Tensor:
        """Return how many (query, key) pairs are attended to, float64 [B, H]."""
        queries = row_pairs(self.q_len, self.k_len, self.q_block, self.k_block, self.open.device)[0]
        return self.blocks.pairs() + (self.open_counts * queries).sum(-1)

    def token_density(self) -> Tensor:
        """Return attended (query, key) pairs ÷ all causal pairs, float32 [B, H], on the index's device."""
        return (self.pairs() / causal_pairs(self.q_len, self.k_len)).float()

    def row_keys(self, row: int) -> Tensor:
        """Return bool [B, H, K]: keys in the kept blocks and open columns of one query block, the future of single queries
        among them."""
        bits = unpack_bits(self.open[:, :, row], self.columns.shape[-1])
        keys = torch.nn.functional.pad(self.blocks.row_keys(row), (0, 1))
        return keys.scatter(-1, torch.where(bits, self.columns, self.k_len).long(), True)[..., :-1]

    def validate(self) -> None:
        """Check every promise of the class on the host. Raises ValueError, which says what is wrong."""
        self.blocks.validate()
        columns, counts = self.columns.cpu().long(), self.column_counts.cpu()
        if self.columns.dtype != torch.int32 or columns.shape[:-1] != counts.shape or counts.shape != self.open.shape[:2]:
            raise ValueError(f"columns {tuple(columns.shape)} and counts {tuple(counts.shape)} don't fit the blocks' heads")
        filled = torch.arange(columns.shape[-1]) < counts[..., None]
        if (
            bool((columns[filled] >= self.k_len).any())
            or bool((columns < 0).any())
            or bool((columns[~filled] < self.k_len).any())
        ):
            raise ValueError(f"columns must lie between 0 and {self.k_len - 1}, and be {self.k_len} past their count")
        if bool((filled[..., 1:] & (columns[..., 1:] <= columns[..., :-1])).any()):
            raise ValueError("columns must ascend within each head")
        is_open = self._open_columns()
        if self.by_row:
            is_open = is_open & self._listed_as_open()
        words = torch.nn.functional.pad(is_open, (0, -is_open.shape[-1] % 32)).unflatten(-1, (-1, 32))
        shifts = torch.arange(32, dtype=torch.int32)
        place = torch.arange(1, is_open.shape[-1] + 1)
        reach = (is_open * place).amax(-1) if len(place) else is_open.sum(-1)
        if not torch.equal((self.open.cpu()[..., None] >> shifts & 1).bool(), words):
            raise ValueError("open does not follow from blocks and columns")
        if not torch.equal(self.open_counts.cpu(), is_open.sum(-1, dtype=torch.int32)):
            raise ValueError("open_counts does not follow from blocks and columns")
        if not torch.equal(self.reach.cpu(), reach.int()):
            raise ValueError("reach does not follow from blocks and columns")

    def _open_columns(self) -> Tensor:
        """Return bool [B, H, Mq, V] on the host: whether each column is open in each row, by the definition of the class."""
        columns = self.columns.cpu().long()[:, :, None]
        kept_blocks = self.blocks.to_mask().cpu()
        start = diagonal_start(self.q_len, self.k_len, self.q_block, self.k_block) * self.k_block
        block = (columns // self.k_block).clamp(max=kept_blocks.shape[-1] - 1).expand(-1, -1, kept_blocks.shape[2], -1)
        return (columns < start[:, None]) & ~kept_blocks.gather(-1, block)

    def _listed_as_open(self) -> Tensor:
        """Return bool [B, H, Mq, V] on the host: whether `open` says that each column is open in each row."""
        return unpack_bits(self.open.cpu(), self.columns.shape[-1])

    def to(self, device: torch.device | str) -> ColumnIndex:
        """Return the same index on another device."""
        moved = {name: getattr(self, name).to(device) for name in ("columns", "column_counts", "open", "open_counts", "reach")}
        return replace(self, blocks=self.blocks.to(device), **moved)


def unpack_bits(words: Tensor, count: int) -> Tensor:
    """Return the first `count` bits of words int32 [..., W], bit c % 32 of word c // 32: bool [..., count]."""
    shifts = torch.arange(32, dtype=torch.int32, device=words.device)
    return ((words[..., None] >> shifts) & 1).flatten(-2)[..., :count].bool()
