"""Tiles of the two passes: they do not depend on the block size."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from attention_kernels.tiles import prefetch_depth, shared_bytes


@dataclass(frozen=True)
class Tile:
    """Queries and keys of one matrix product, warps that share it, and tiles of K under way (at most).

    piece: elements of the head dim in one product; 0 in the constants below: all of it, padded to a power of two.
    """

    rows: int
    cols: int
    warps: int
    depth: int
    piece: int = 0


LOG_SUM_EXP = Tile(256, 64, 8, 3)
POOL = Tile(256, 64, 8, 3)
"""float16 and bfloat16: 112 KiB of shared memory and 128 registers a thread at head dim 128, so that two programs share a
Hopper SM and one computes exponentials and maxima while the other multiplies. 256 rows halve what is read of K."""
FLOAT32 = Tile(64, 32, 8, 2)
INTERPRETED = Tile(32, 32, 4, 1)

WHOLE_DIM, MOST_DIM = 256, 2048
"""Head dims (padded) that one product takes, and that the kernels take at all."""
WIDE = Tile(128, 256, 8, 3, piece=64)
"""Above WHOLE_DIM, in float16 and bfloat16, as a plain matrix product: queries and keys pass through shared memory, and only
large tiles keep what is read from L2 below what it delivers."""
WIDE_FLOAT32 = Tile(64, 64, 8, 2, piece=32)
WIDE_INTERPRETED = Tile(32, 32, 4, 1, piece=128)


def tile_for(tile: Tile, device: torch.device, itemsize: int, dim: int) -> Tile:
    """Return `tile`, or what stands in for it in float32, in the interpreter and for wide heads, with as many rows and as deep
    as shared memory allows. `dim`: head dim, padded. Raises ValueError where it does not fit at all."""
    if dim > WHOLE_DIM:
        return _wide_tile(device, itemsize)
    if device.type != "cuda":
        tile = INTERPRETED
    elif itemsize == 4:
        tile = FLOAT32
    room, rows = shared_bytes(device), tile.rows
    while rows > 32 and (rows + 2 * tile.cols) * dim * itemsize > room:
        rows //= 2
    return replace(tile, rows=rows, depth=prefetch_depth(rows, tile.cols, dim, itemsize, room, tile.depth), piece=dim)


def _wide_tile(device: torch.device, itemsize: int) -> Tile:
    """Return the tile of a head dim read in pieces, with fewer keys where shared memory has no room for two of its stages."""
    tile = WIDE_FLOAT32 if itemsize == 4 else WIDE
    if device.type != "cuda":
        tile = WIDE_INTERPRETED
    room, cols = shared_bytes(device), tile.cols
    while cols > 32 and 2 * (tile.rows + cols) * tile.piece * itemsize > room:
        cols //= 2
    return replace(tile, cols=cols, depth=prefetch_depth(0, tile.rows + cols, tile.piece, itemsize, room, tile.depth))
