"""Which tiles the two kernels of the backward pass work in: arithmetic alone, for registers and shared memory.

Nothing is tuned at run time, and no time has been measured yet. A thread has 255 registers; on Hopper an accumulator of float32
takes rows · columns ÷ (32 · warps) of them. In 16-bit types, head dim 128, by ptxas of CUDA 12.8 for sm_90 (triton 3.7.1):

| kernel | blocks | tile | warps | sums | S, dP, and one in 16 bits | all | spilled bytes |
| --- | --- | --- | --- | --- | --- | --- | --- |
| dQ | 128 | 128 queries, 128 keys a step | 8 | 64 | 160 | 240 | 0 |
| dQ | 64 | 64 queries, 64 keys a step | 4 | 64 | 80 | 202 | 0 |
| dK, dV | 128 | 128 keys, 64 queries a step | 8 | 128 | 80 | 255 | 36 |
| dK, dV | 64 | 64 keys, 64 queries a step | 4 | 128 | 80 | 255 | 40 |

Addresses come from descriptors; with pointers dK and dV of blocks of 64 spill 216 bytes. Programs of four warps share a
multiprocessor in twos, so that one multiplies while the other is at its exponentials: half of the shared memory is for each.
"""

from __future__ import annotations

from functools import lru_cache

import torch

from attention_kernels.block_sparse.triton_tuning import Tile
from attention_kernels.tiles import prefetch_depth, shared_bytes

MOST_REGISTERS = 224
"""Registers of a thread that sums and products may take; the rest is for addresses, sums of rows and the loop."""
SCRATCH = 12 << 10
"""Bytes of shared memory left to what changes its layout on the way, and to the numbers of each row."""


def choose_query_tile(
    device: torch.device, dtype: torch.dtype, *, dim: int, q_block: int, k_block: int, shared: int, described: bool
) -> Tile:
    """Return the tile of the kernel of dQ, for query blocks of `q_block` rows in `shared` heads with one list, and key blocks
    of `k_block`. described: K and V may be read through tensor descriptors. Raises ValueError where none fits the GPU."""
    rows_shared = q_block << (shared - 1).bit_length()  # heads fill a tile in powers of two
    return _query_tile(*_site(device, dtype), 1 << (dim - 1).bit_length(), rows_shared, k_block, described)


def choose_key_tile(device: torch.device, dtype: torch.dtype, *, dim: int, q_block: int, k_block: int, described: bool) -> Tile:
    """Return the tile of the kernel of dK and dV: `cols` keys of a program, `rows` queries a step. described: Q and dO may be
    read through tensor descriptors. Raises ValueError where none fits the GPU."""
    return _key_tile(*_site(device, dtype), 1 << (dim - 1).bit_length(), q_block, k_block, described)


def _site(device: torch.device, dtype: torch.dtype) -> tuple[tuple[int, int], int, int]:
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)
    return capability, shared_bytes(device), dtype.itemsize


@lru_cache
def _query_tile(
    capability: tuple[int, int], room: int, itemsize: int, dim: int, rows_shared: int, k_block: int, described: bool
) -> Tile:
    if itemsize == 2:
        rows, cols = min(rows_shared, 128 if dim <= 128 else 64), 64 if dim <= 128 else 32
        twice = (2 * rows + 4 * 128) * dim * itemsize + SCRATCH <= room  # two stages of longer steps
        cols = 128 if rows == k_block == 128 and twice else cols
    else:  # float32 is multiplied outside the tensor cores, with all operands in registers
        rows, cols = min(rows_shared, 32 if dim <= 128 else 16), 16
    while 2 * (rows + cols) * dim * itemsize + SCRATCH > room and max(rows, cols) > 16:
        rows, cols = (rows, cols // 2) if cols >= rows else (rows // 2, cols)
    described = described and capability[0] == 9 and itemsize == 2 and cols <= k_block
    warps = _warps(rows * dim, rows * cols)
    return Tile(rows, cols, warps, _stages(2 * rows, 2 * cols, dim, itemsize, room, warps), described)


@lru_cache
def _key_tile(
    capability: tuple[int, int], room: int, itemsize: int, dim: int, q_block: int, k_block: int, described: bool
) -> Tile:
    if itemsize == 2:
        cols, rows = min(k_block, 128 if dim <= 128 else 64), 64 if dim <= 128 else 32
    else:
        cols, rows = min(k_block, 32 if dim <= 128 else 16), 16
    while 2 * (rows + cols) * dim * itemsize + SCRATCH > room and max(rows, cols) > 16:
        rows, cols = (rows // 2, cols) if rows >= cols else (rows, cols // 2)
    described = described and capability[0] == 9 and itemsize == 2 and rows <= q_block
    warps = _warps(2 * cols * dim, rows * cols)
    return Tile(rows, cols, warps, _stages(2 * cols, 2 * rows, dim, itemsize, room, warps), described)


def _warps(sums: int, products: int) -> int:
    """Return the fewest warps that hold `sums` elements of accumulators, and of `products` elements two in float32 and one in
    16 bits."""
    return next((n for n in (4, 8) if (sums + 2.5 * products) / (32 * n) <= MOST_REGISTERS), 8)


def _stages(kept: int, loaded: int, dim: int, itemsize: int, room: int, warps: int) -> int:
    """Return the depth of a loop that keeps `kept` rows of `dim` elements and loads `loaded` a turn; of few warps the one that
    lets two programs share a multiprocessor, where that is two or more. Raises ValueError where no depth fits."""
    if itemsize != 2:
        return prefetch_depth(kept, loaded, dim, itemsize, room - SCRATCH, most=1)
    half = room // 2 - SCRATCH
    shares = warps == 4 and (kept + 2 * loaded) * dim * itemsize <= half
    return prefetch_depth(kept, loaded, dim, itemsize, half if shares else room - SCRATCH)
