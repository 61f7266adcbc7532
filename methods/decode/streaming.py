"""StreamingLLM as a cache for decoding: the first tokens and a window of the latest ones."""

from __future__ import annotations

from typing import Any

import torch
from attention_kernels.block_index import BlockIndex
from attention_kernels.selection import step_index

from methods.decode import register
from methods.decode.parts.base import DecodeMethod, StepInputs
from methods.parts.release import Release


@register("streaming")
class Streaming(DecodeMethod):
    """Keeps the blocks of the first `sinks` tokens and, with the remaining budget, the latest blocks, the same in all layers
    and heads.

    It needs no weights. Deviations from the release: whole blocks, so that the window loses a block at a time; positions are
    not renumbered.

    As released, sinks and window are beside the newest token, and the blocks hold all of them: two or three more than the
    budget fills (within it where a sparsity sets it).
    """

    paper = "Efficient Streaming Language Models with Attention Sinks, arXiv 2309.17453"
    family = "static"
    default_budget = 2004  # 4 sinks and 2000 recent tokens, those of its release
    release = Release(
        "mit-han-lab/streaming-llm",
        source="examples/run_streaming_llama.py",
        settings={"block_size": 16, "dense_layers": 0, "sinks": 4},
        density={"budget": 2004},
        quirks={"the newest token is beside sinks and window": "streaming_llm/kv_cache.py"},
    )

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
        if self.as_released and self.budget is not None:
            newest = (x.lengths() - 1)[:, None, None]
            first = (newest - max(0, self.budget - self.sinks)).clamp(min=0) // self.block_size
            own = column <= newest // self.block_size
            selected = (((column < sinks) | (column >= first)) & own).expand(-1, x.k.shape[1], -1)
            most = min(blocks, sinks + max(0, self.budget - self.sinks) // self.block_size + 2)
            return step_index(selected, most, k_block=self.block_size, k_len=x.k.shape[2])
        # the newest block is kept anyway; then the sinks from the start, then from the end back
        scores = torch.where(column < sinks, 2 * blocks - column, column).float()
        return self.best(scores.expand(*x.k.shape[:2], blocks), x)

    def knobs(self) -> dict[str, int | float | str | bool | None]:
        return super().knobs() | {"sinks": self.sinks}


if __name__ == "__main__":
    from methods.decode.parts.demo import demo

    demo("streaming")
