"""Which tile the Triton block-sparse kernel works in: a table for shapes and GPUs that matter, and a rule for the rest.

Nothing is tuned at run time, so a timed call never pays for it, and the same call always runs the same kernel.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from attention_kernels.tiles import prefetch_depth, shared_bytes


@dataclass(frozen=True)
class Tile:
    """What one program computes at a time, and how.

    Attributes:
        rows: query rows: a part of a query block, a query block, or those of several heads that share a list.
        cols: keys in a step: a part of a block, a block, or several blocks gathered side by side.
        warps: warps of a program.
        stages: depth of the prefetch of K and V.
        described: K and V arrive through tensor descriptors (TMA; Hopper or newer), else through pointers.
    """

    rows: int
    cols: int
    warps: int
    stages: int
    described: bool = False


# (compute capability, head dim padded to a power of two, query rows that share a list, key block) -> tile,
# for 16-bit types. Rows are those of one query block in all the heads that share its list, at most 256.
# Two programs share a multiprocessor, so that one multiplies while the other is at its softmax. Measured on an H100 at 131,072
# tokens and 90 % sparsity among four to seven tiles each: the best of them, or within 2 % of it; (128, 64) was not.
TUNED: dict[tuple[str, int, int, int], Tile] = {
    ("sm90", 128, 64, 64): Tile(64, 64, 4, 3, True),
    ("sm90", 128, 128, 64): Tile(128, 64, 4, 2, True),
    ("sm90", 128, 256, 64): Tile(128, 64, 4, 2, True),
    ("sm90", 128, 128, 128): Tile(128, 64, 4, 2, True),
}


def choose_tile(
    device: torch.device, dtype: torch.dtype, *, dim: int, q_block: int, k_block: int, shared: int, described: bool
) -> Tile:
    """Return the tile for query blocks of `q_block` rows in `shared` heads with one list, and key blocks of `k_block`.

    `described`: K and V may be read through tensor descriptors (see `describable`). Raises ValueError where no tile fits
    into the GPU's shared memory.
    """
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)
    tile = _choose(capability, shared_bytes(device), dtype.itemsize, dim, q_block, k_block, shared)
    return tile if described else replace(tile, described=False)


@lru_cache
def _choose(capability: tuple[int, int], room: int, itemsize: int, dim: int, q_block: int, k_block: int, shared: int) -> Tile:
    pad = 1 << (dim - 1).bit_length()
    rows_shared = q_block << (shared - 1).bit_length()  # heads fill a tile in powers of two
    key = (f"sm{capability[0]}{capability[1]}", pad, min(rows_shared, 256), k_block)
    tuned = TUNED.get(key) if itemsize == 2 else None
    return tuned or default_tile(capability, room, itemsize, pad, rows_shared, k_block)


def default_tile(capability: tuple[int, int], room: int, itemsize: int, dim: int, rows_shared: int, k_block: int) -> Tile:
    """Return a tile from arithmetic alone: 128 rows by 64 keys where shared memory holds two stages of it, else the next
    smaller.

    Float32 is multiplied outside the tensor cores, with all operands in registers: it gets 64 rows by 16 keys.
    """
    rows, cols = (min(rows_shared, 128), 64) if itemsize == 2 else (min(rows_shared, 64), 16)
    while (rows + 2 * 2 * cols) * dim * itemsize > room and max(rows, cols) > 16:
        rows, cols = (rows, cols // 2) if 2 * cols > rows or rows <= 16 else (rows // 2, cols)
    full = rows * dim >= 128 * 128 if itemsize == 2 else rows >= 64
    depth = prefetch_depth(rows, 2 * cols, dim, itemsize, room, most=3 if itemsize == 2 else 2)
    return Tile(rows, cols, 8 if full else 4, depth, described=capability[0] == 9 and itemsize == 2 and cols <= k_block)


def describable(x: Tensor) -> bool:
    """Say whether a tensor descriptor can address x [B, H, N, D]: rows that are contiguous and start on multiples of 16
    bytes."""
    aligned = all(stride > 0 and stride * x.element_size() % 16 == 0 for stride in x.stride()[:-1])
    return x.stride(-1) == 1 and aligned and x.data_ptr() % 16 == 0
