"""Oracle: the blocks that the true attention map says matter most. Not for use: the bound that others are held to."""

from __future__ import annotations

from typing import Literal, get_args

from kernels.block_index import BlockIndex
from kernels.block_map import block_map
from kernels.selection import select_topk
from methods import register
from methods.base import LayerInputs, Method

Pool = Literal["max", "mass"]


@register("oracle")
class Oracle(Method):
    """Top-k on the true causal softmax attention, pooled per block pair.

    pool="max": the highest probability in the block, SeerAttention's ground truth. pool="mass": the sum, which keeps
    the most attention mass that any selection of as many blocks per row and head can. Its selection costs more than
    dense attention: compare its accuracy, not its time.
    """

    paper = "ground truth of SeerAttention, arXiv 2410.13276"
    knob = "top-k"
    family = "top-k"
    bound = True

    def __init__(
        self, *, block_size: int = 64, sparsity: float | None = None, seed: int = 0, pool: Pool = "max"
    ) -> None:  # fmt: skip
        super().__init__(block_size=block_size, sparsity=sparsity, seed=seed)
        self.required_sparsity()
        if pool not in get_args(Pool):
            raise ValueError(f"pool={pool}: must be one of {', '.join(get_args(Pool))}")
        self.pool = pool

    def select(self, x: LayerInputs) -> BlockIndex:
        truth = block_map(x.q, x.k, q_block=self.block_size, k_block=self.block_size, scale=x.scale, pool=self.pool)
        return select_topk(truth, self.budget(x), **self.grid(x))

    def knobs(self) -> dict[str, int | float | str | bool | None]:
        return {"pool": self.pool}
