"""Tiles of the two passes: they do not depend on the block size."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from kernels.tiles import shared_bytes, stages


@dataclass(frozen=True)
class Tile:
    """Queries and keys of one matrix product, warps that share it, and tiles of K under way (at most)."""

    rows: int
    cols: int
    warps: int
    depth: int


LOG_SUM_EXP = Tile(256, 64, 8, 3)
POOL = Tile(256, 64, 8, 3)
"""float16 and bfloat16: 112 KiB of shared memory and 128 registers a thread at head dim 128, so that two programs share a
Hopper SM and one computes exponentials and maxima while the other multiplies. 256 rows halve what is read of K."""
FLOAT32 = Tile(64, 32, 8, 2)
INTERPRETED = Tile(32, 32, 4, 1)


def tile_for(wanted: Tile, device: torch.device, itemsize: int, dim: int) -> Tile:
    """`wanted`, or what stands in for it in float32 and in the interpreter, with as many rows and as deep as shared memory
    allows. `dim`: head dim, padded. Raises ValueError where it does not fit at all."""
    if device.type != "cuda":
        wanted = INTERPRETED
    elif itemsize == 4:
        wanted = FLOAT32
    room, rows = shared_bytes(device), wanted.rows
    while rows > 32 and (rows + 2 * wanted.cols) * dim * itemsize > room:
        rows //= 2
    return replace(wanted, rows=rows, depth=stages(rows, wanted.cols, dim, itemsize, room, wanted.depth))
