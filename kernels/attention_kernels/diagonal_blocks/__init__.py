"""A BlockIndex from diagonals: the blocks that hold a key at one of the kept distances from some query of their row.

A short last query block counts as a whole one: it may keep a block that only the queries it lacks would need.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from attention_kernels.backends import resolve_backend
from attention_kernels.block_index import BlockIndex
from attention_kernels.diagonal_blocks.reference import list_blocks_reference


def diagonal_blocks(
    diagonals: Tensor, *, block: int, q_len: int, k_len: int, most: int | None = None, kernel: str = "auto"
) -> BlockIndex:
    """Make an index from diagonals, bool [B, H, K]: entry o keeps the keys o tokens before each query. Blocks of `block`
    queries and keys.

    Entry 0 must be set: it is the diagonal. most: diagonals that a head has at most, known to the caller; the index is wide
    enough for them. kernel: reference, triton, or auto (triton on CUDA). Never waits for the device.
    """
    if diagonals.ndim != 3 or diagonals.shape[-1] != k_len or diagonals.dtype != torch.bool:
        raise ValueError(f"diagonals must be bool [B, H, {k_len}], not {diagonals.dtype} {tuple(diagonals.shape)}")
    cols = -(-k_len // block)
    # A query block and a key block d blocks before it hold pairs at the distances own + d * block - 2 * block + 2 to
    # own + d * block, own being the place of the query block's last token in its key block: the same d in every row.
    own = (k_len - q_len + block - 1) % block
    before = torch.arange(cols + 1, device=diagonals.device) * block + own
    total = pad(diagonals.cumsum(-1, dtype=torch.int32), (1, 0))
    crossed = total[..., (before + 1).clamp(max=k_len)] > total[..., (before - 2 * block + 2).clamp(min=0, max=k_len)]
    place = torch.arange(cols + 1, dtype=torch.int32, device=diagonals.device)
    distances = torch.where(crossed, place, cols + 1).sort(-1).values  # ascending, compact
    nearer = pad(crossed.cumsum(-1, dtype=torch.int32), (1, 0))  # how many are below a distance
    width = cols if most is None else max(1, min(cols, 2 * most))  # a diagonal crosses two blocks of a row at most
    if resolve_backend(kernel, total.new_empty(0, dtype=torch.float32)) == "triton":
        from attention_kernels.diagonal_blocks.triton_kernel import list_blocks_triton  # imported late: needs triton

        counts, indices = list_blocks_triton(distances, nearer, block, q_len, k_len, width)
    else:
        counts, indices = list_blocks_reference(distances, nearer, block, q_len, k_len, width)
    return BlockIndex(counts, indices, block, block, q_len, k_len)
