"""How many blocks each row keeps, made once for a shape and kept on the device."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from attention_kernels.block_index import causal_blocks, diagonal_mask


@lru_cache(maxsize=256)
def row_budget(density: float, q_len: int, k_len: int, q_block: int, k_block: int) -> tuple[int, ...]:
    """Return the blocks to keep in each of the Mq rows: the running total follows density × causal blocks so far, and a row
    keeps at least one. What that floor overspends in the first rows, later rows save. Raises ValueError for a density that is
    no share."""
    if not 0 <= density <= 1:
        raise ValueError(f"density={density}: must be at least 0 and at most 1, the share of causal blocks to keep")
    budget: list[int] = []
    seen = used = 0
    for blocks in causal_blocks(q_len, k_len, q_block, k_block).tolist():
        seen += blocks
        k = min(blocks, max(1, round(density * seen) - used))
        used += k
        budget.append(k)
    return tuple(budget)


@lru_cache(maxsize=512)  # a prompt in chunks has a shape for each of them
def kept_counts(
    budget: tuple[int, ...], shape: tuple[int, int, int, int], device: torch.device, full_rows: int = 0
) -> tuple[Tensor, int]:
    """Return the number of blocks that a row keeps, int32 [Mq] on the device, and the largest of them.

    The forced ones are included, and there are no more than are causal. The last `full_rows` rows, which need no list, have
    the forced ones alone. Made once for all layers: small tensors made on the
    host at every call cost more than the selection itself.

    shape: q_len, k_len, q_block, k_block.
    """
    forced, causal = diagonal_mask(*shape).sum(-1).tolist(), causal_blocks(*shape).tolist()
    listed = len(budget) - full_rows
    counts = [min(max(k, f), c) for k, f, c in zip(budget[:listed], forced, causal, strict=False)] + forced[listed:]
    with torch.inference_mode(False):  # a tensor made in inference mode could not take part in training later
        return torch.tensor(counts, dtype=torch.int32, device=device), max(counts)
