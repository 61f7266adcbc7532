"""Random blocks: the result of a selection that knows nothing. A method that doesn't beat it selects nothing."""

from __future__ import annotations

import torch
from attention_kernels.block_index import BlockIndex
from attention_kernels.selection import select_topk
from torch import Tensor

from methods import register
from methods.parts.base import LayerInputs, Method

_LOW32 = 0xFFFFFFFF


def _mix(h: int) -> int:
    """Return one round of a 32-bit integer hash (Wellons, "Prospecting for hash functions", [15 2c1b3c6d 12 297a2d39 15])."""
    h = ((h ^ (h >> 15)) * 0x2C1B3C6D) & _LOW32
    h = ((h ^ (h >> 12)) * 0x297A2D39) & _LOW32
    return h ^ (h >> 15)


def _mix_tensor(h: Tensor) -> Tensor:
    """Return `_mix` of int64 [...]. The multipliers are below 2**30, so that products stay below 2**63 on every device."""
    h = ((h ^ (h >> 15)) * 0x2C1B3C6D) & _LOW32
    h = ((h ^ (h >> 12)) * 0x297A2D39) & _LOW32
    return h ^ (h >> 15)


def hashed_uniform(seed: int, layer: int, head: int, rows: Tensor, columns: int) -> Tensor:
    """Return float32 [M,columns] in [0, 1) for rows [M] int64, numbers that depend on nothing but their coordinates.

    They have the same bits on CPU and GPU, whatever else was drawn before.
    """
    state = 0
    for part in (seed & _LOW32, seed >> 32, layer, head):
        state = _mix((state ^ part) + 0x9E3779B9 & _LOW32)
    row_hash = _mix_tensor((rows ^ state) + 0x9E3779B9 & _LOW32)
    cells = row_hash[:, None] + torch.arange(columns, device=rows.device) * 0x9E3779B9
    return (_mix_tensor(cells & _LOW32) >> 8).to(torch.float32) * 2.0**-24


@register("random")
class RandomBlocks(Method):
    """Keeps blocks drawn uniformly, anew for every layer and query head; the diagonal block is always kept.

    A row's draw depends on its position, not on how the prompt is cut into chunks. All samples of a batch share it. It needs a
    sparsity, no weights and no search.

    last: query blocks at the end that keep everything, 0. They count in the density, and show what they alone are worth.
    """

    paper = "baseline"
    knob = "top-k"
    family = "static"

    def __init__(self, *, block_size: int = 64, sparsity: float | None = None, seed: int = 0, last: int = 0) -> None:
        super().__init__(block_size=block_size, sparsity=sparsity, seed=seed)
        self.required_sparsity()
        self.take_last(last)

    def select(self, x: LayerInputs) -> BlockIndex:
        grid = self.grid(x)
        rows = torch.arange(grid["k_len"] - grid["q_len"], grid["k_len"], self.block_size, device=x.q.device)
        columns = -(-grid["k_len"] // self.block_size)
        heads = [hashed_uniform(self.seed, x.layer, head, rows, columns) for head in range(x.q.shape[1])]
        scores = torch.stack(heads).expand(x.q.shape[0], -1, -1, -1)
        return select_topk(scores, self.budget(x), full_rows=self.rows_in_full(x), **grid)

    def knobs(self) -> dict[str, int | float | str | bool | None]:
        return {"seed": self.seed, "last": self.full_rows}


if __name__ == "__main__":
    from methods.parts.demo import demo

    demo("random")
