"""The keys that MInference's release computes for a vertical-slash head: tiles that begin at any key, not whole blocks.

Its kernel covers the diagonals of a row from the farthest to the nearest with tiles of a block's keys. A tile ends where the
row's last query meets the diagonal. A diagonal that the tiles so far don't reach begins a tile of its own, or lengthens the
last one by a whole tile where that is at most a tile away. Columns are taken where no tile holds them.
(csrc/vertical_slash_index.cu of microsoft/MInference.)
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from attention_kernels.block_index import BlockIndex
from attention_kernels.column_index import ColumnIndex
from attention_kernels.open_columns import with_row_keys
from torch import Tensor

from methods.parts.base import Grid

MASKED = 1 << 25
"""Keys of rows decided at once; each takes about 4 bytes meanwhile."""


def tile_ends(diagonals: Tensor, grid: Grid) -> Tensor:
    """Return where the tiles of each row end, int64 [B, H, Mq, T], 0 where a row has no more: tile t holds the block's keys
    before it. Tiles of a row ascend and don't overlap; the last may reach past the row.

    diagonals: bool [B, H, K], entry o for the keys o tokens before each query; entry 0 is set. grid: square blocks. A loop over
    the tiles of the longest row; never waits for the device.
    """
    block, (batch, heads, k_len) = grid["k_block"], diagonals.shape
    device = diagonals.device
    place = torch.arange(k_len, device=device)
    # before[x]: the farthest diagonal that is nearer than x, -1 where there is none
    before = torch.full((batch, heads, k_len + 1), -1, dtype=torch.int64, device=device)
    before[..., 1:] = torch.where(diagonals, place, -1).cummax(-1).values
    row_end = (torch.arange(-(-grid["q_len"] // block), device=device) + 1) * block + k_len - grid["q_len"]
    row_end = row_end.expand(batch, heads, -1)
    farthest = before.gather(-1, row_end.clamp(max=k_len))
    distance = row_end - (row_end - farthest).clamp(min=block)  # from the end of a tile to that of the row
    more = torch.ones_like(distance, dtype=torch.bool)
    ends = []
    for _ in range(-(-k_len // block) + 1):
        ends.append(torch.where(more, row_end - distance, 0))
        nearer = before.gather(-1, distance.clamp(0, k_len))
        more = more & (distance > 0) & (nearer >= 0)
        distance = torch.where(nearer >= distance - block, distance - block, nearer)
    return torch.stack(ends, -1)


def with_tiles(diagonals: Tensor, columns: Tensor, counts: Tensor, grid: Grid) -> ColumnIndex:
    """Return the index of heads that keep diagonals bool [B, H, K], and columns int32 [B, H, V], K past their counts [B, H]:
    exactly the keys of the release's tiles and columns, and the blocks over a row's own tokens.

    Blocks that a row's tiles fill are blocks of the index, all other keys are single ones. A few heads at a time.
    """
    block, k_len = grid["k_block"], grid["k_len"]
    batch, heads, _ = diagonals.shape
    ends = tile_ends(diagonals, grid)
    rows, cols = ends.shape[2], -(-k_len // block)
    marked = torch.zeros(batch, heads, k_len + 1, dtype=torch.bool, device=diagonals.device)
    in_count = torch.arange(columns.shape[-1], device=columns.device) < counts[..., None]
    single = marked.scatter_(-1, torch.where(in_count, columns, k_len).long(), True)[..., :k_len]
    step = max(1, MASKED // max(1, batch * rows * k_len))

    def parts() -> Iterator[tuple[BlockIndex, Tensor]]:
        for first in range(0, heads, step):
            part = slice(first, first + step)
            covered = _covered(ends[:, part], block, k_len)
            full = torch.nn.functional.pad(covered, (0, -k_len % block)).unflatten(-1, (cols, block)).all(-1)
            yield BlockIndex.from_mask(full, wait=False, **grid), covered | single[:, part, None]

    return with_row_keys(parts())


def _covered(ends: Tensor, block: int, k_len: int) -> Tensor:
    """Return bool [B, H, Mq, K], the keys in the tiles that end at `ends`."""
    steps = torch.zeros(*ends.shape[:3], k_len + 1, dtype=torch.int8, device=ends.device)
    real = (ends > 0).to(torch.int8)
    steps.scatter_add_(-1, (ends - block).clamp(0, k_len), real)
    steps.scatter_add_(-1, ends.clamp(max=k_len), -real)  # a tile may begin where another ends
    return steps.cumsum(-1, dtype=torch.int8)[..., :k_len].bool()
