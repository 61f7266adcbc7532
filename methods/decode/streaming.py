"""StreamingLLM as a cache for decoding: the first tokens and a window of the latest ones."""

from __future__ import annotations

from typing import Any

import torch
from attention_kernels.block_index import BlockIndex

from methods.decode import register
from methods.decode.parts.base import DecodeMethod, StepInputs


@register("streaming")
class Streaming(DecodeMethod):
    """Keeps the blocks of the first `sinks` tokens and, with the remaining budget, the latest blocks, the same in all layers
    and heads.

    It needs no weights. Deviations from the release: whole blocks, so that the window loses a block at a time; positions are
    not renumbered.
    """

    paper = "Efficient Streaming Language Models with Attention Sinks, arXiv 2309.17453"
    family = "static"
    default_budget = 2004  # 4 sinks and 2000 recent tokens, those of its release

    def __init__(
        self,
        *,
        block_size: int = 16,
        budget: int | None = None,
        sparsity: float | None = None,
        dense_layers: int = 0,
        seed: int = 0,
        sinks: int = 4,
    ) -> None:
        super().__init__(block_size=block_size, budget=budget, sparsity=sparsity, dense_layers=dense_layers, seed=seed)
        if sinks < 0:
            raise ValueError(f"sinks={sinks}: must be at least 0 tokens")
        self.sinks = sinks

    def select(self, x: StepInputs, state: Any) -> BlockIndex | None:
        if self.keeps_all(x):
            return None
        sinks, blocks = -(-self.sinks // self.block_size), -(-x.k.shape[2] // self.block_size)
        column = torch.arange(blocks, device=x.q.device)
        # the newest block is kept anyway; then the sinks from the start, then from the end back
        scores = torch.where(column < sinks, 2 * blocks - column, column).float()
        return self.best(scores.expand(*x.k.shape[:2], blocks), x)

    def knobs(self) -> dict[str, int | float | str | bool | None]:
        return super().knobs() | {"sinks": self.sinks}


if __name__ == "__main__":
    from methods.decode.parts.demo import demo

    demo("streaming")
