"""Oracle: the blocks that matter most in the true attention map. Not for use: the bound that other methods are held to."""

from __future__ import annotations

from typing import Literal, get_args

from attention_kernels.block_index import BlockIndex
from attention_kernels.block_map import block_map
from attention_kernels.selection import select_topk

from methods import register
from methods.parts.base import LayerInputs
from methods.parts.scored_method import ScoredMethod, Selection

Pool = Literal["max", "mass"]


@register("oracle")
class Oracle(ScoredMethod):
    """Keeps the best blocks of the true causal softmax attention, pooled per block pair; each query head for itself.

    It needs no weights and no search, but selecting costs more than dense attention: compare its accuracy, not its time.

    pool: "max", the highest probability in the block, SeerAttention's ground truth; or "mass", the sum, which keeps the most
    attention mass that any selection of as many blocks per row and head can. selection: the rule that turns a row's map,
    normalised to sum to 1, into blocks (see `ScoredMethod`), for the bound of a gate that goes by that rule.
    """

    paper = "ground truth of SeerAttention, arXiv 2410.13276"
    knob = "top-k | threshold"
    family = "top-k"

    def __init__(
        self,
        *,
        block_size: int = 64,
        sparsity: float | None = None,
        seed: int = 0,
        pool: Pool = "max",
        selection: Selection = "topk",
        threshold: float | None = None,
        nz_ratio: float | None = None,
        last: int = 0,
        blocks: int | None = None,
    ) -> None:
        super().__init__(
            block_size=block_size,
            sparsity=sparsity,
            seed=seed,
            selection=selection,
            threshold=threshold,
            nz_ratio=nz_ratio,
            last=last,
            blocks=blocks,
        )
        if pool not in get_args(Pool):
            raise ValueError(f"pool={pool}: must be one of {', '.join(get_args(Pool))}")
        self.pool = pool

    def select(self, x: LayerInputs) -> BlockIndex:
        grid = self.grid(x)
        rule = self.rule(x)
        truth = block_map(x.q, x.k, q_block=self.block_size, k_block=self.block_size, scale=x.scale, pool=self.pool)
        if "budget" in rule:
            return select_topk(truth, rule["budget"], full_rows=rule["full_rows"], **grid)
        share = truth.div_(truth.sum(-1, keepdim=True))  # in place: a map of 128k tokens is 512 MiB
        return BlockIndex.from_mask(share > rule["threshold"], **grid, wait=False).with_last_rows(rule["full_rows"])

    def knobs(self) -> dict[str, int | float | str | bool | None]:
        return {
            "pool": self.pool,
            "selection": self.selection,
            "threshold": self.threshold,
            "nz_ratio": self.nz_ratio,
            "last": self.full_rows,
            "blocks": self.blocks,
        }


if __name__ == "__main__":
    from methods.parts.demo import demo

    demo("oracle")
