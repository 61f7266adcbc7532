"""Random blocks at every step: the result of a selection that knows nothing."""

from __future__ import annotations

from typing import Any

import torch
from attention_kernels.block_index import BlockIndex

from methods.decode import register
from methods.decode.parts.base import DecodeMethod, StepInputs
from methods.random_blocks import hashed_uniform


@register("random")
class RandomBlocks(DecodeMethod):
    """Keeps the newest block and others drawn uniformly, anew for every step, layer and KV head, by a hash of seed and place.

    It needs no weights.
    """

    paper = "baseline"
    family = "static"

    def select(self, x: StepInputs, state: Any) -> BlockIndex | None:
        if self.keeps_all(x):
            return None
        blocks = -(-x.k.shape[2] // self.block_size)
        lengths = x.lengths()  # a sequence's own: its draws don't depend on the padding beside it
        heads = [hashed_uniform(self.seed, x.layer, head, lengths, blocks) for head in range(x.k.shape[1])]
        return self.best(torch.stack(heads, 1), x)

    def knobs(self) -> dict[str, int | float | str | bool | None]:
        return super().knobs() | {"seed": self.seed}


if __name__ == "__main__":
    from methods.decode.parts.demo import demo

    demo("random")
