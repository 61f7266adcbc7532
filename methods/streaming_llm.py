"""StreamingLLM: the first tokens (attention sinks) and a window of the latest ones."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import torch
from attention_kernels.block_index import BlockIndex
from attention_kernels.selection import select_topk

from methods import register
from methods.parts.base import LayerInputs, Method
from methods.parts.release import Release
from methods.parts.row_budgets import even_budget


@register("streaming_llm")
class StreamingLLM(Method):
    """Keeps the sink blocks and the most recent blocks of every row, the same in all layers and heads.

    It needs no weights and no search.

    sinks: tokens at the start that all rows see, 4 as in the paper. window: tokens before and with the row's last one. Both are
    rounded up to whole blocks, a deviation from the paper's single tokens. With a sparsity instead of a window, each row spends
    its share of the budget on its diagonal first, then on the sinks, then on the most recent blocks.
    """

    paper = "Efficient Streaming Language Models with Attention Sinks, arXiv 2309.17453"
    knob = "window"
    family = "static"
    release = Release(
        "mit-han-lab/streaming-llm",
        source="examples/run_streaming_llama.py",
        settings={"sinks": 4},
        density={"window": 2000},
    )

    def __init__(
        self,
        *,
        block_size: int = 64,
        sparsity: float | None = None,
        seed: int = 0,
        window: int | None = None,
        sinks: int = 4,
    ) -> None:
        super().__init__(block_size=block_size, sparsity=sparsity, seed=seed)
        self.one_of(window=window)
        if window is None:
            self.required_sparsity(", or a window in tokens")
        elif window < 1:
            raise ValueError(f"window={window}: must be at least 1 token")
        if sinks < 0:
            raise ValueError(f"sinks={sinks}: must be at least 0 tokens")
        self.window = window
        self.sinks = sinks

    def row_budgets(self, x: LayerInputs) -> tuple[int, ...]:
        """Return the blocks that each row keeps, Mq numbers."""
        if self.window is None:
            return self.budget(x)
        return even_budget(self.native_blocks(self.window), 0, **self.grid(x))

    def native_blocks(self, window: int) -> int:
        """Return the blocks of sinks and window: a row no longer than both keeps all it sees."""
        return -(-self.sinks // self.block_size) + -(-window // self.block_size)

    def select(self, x: LayerInputs) -> BlockIndex:
        sinks = -(-self.sinks // self.block_size)
        index = _index_of_a_head(self.row_budgets(x), sinks, self.rows_in_full(x), x.q.device, **self.grid(x))
        batch, heads = x.k.shape[:2]  # one index for a whole group of query heads, and the same for every group
        return replace(
            index,
            counts=index.counts.expand(batch, heads, -1).contiguous(),
            indices=index.indices.expand(batch, heads, -1, -1).contiguous(),
        )

    def knobs(self) -> dict[str, int | float | str | bool | None]:
        return {"window": self.window, "sinks": self.sinks}


@lru_cache(maxsize=32)
def _index_of_a_head(
    budget: tuple[int, ...],
    sinks: int,
    full_rows: int,
    device: torch.device,
    *,
    q_block: int,
    k_block: int,
    q_len: int,
    k_len: int,
) -> BlockIndex:
    """Return the index of a batch of one and one head, whose rows keep `budget` blocks, `sinks` of them at the start.

    It depends on no token, so it is kept for the next layers: read it only.
    """
    # top-k on these scores takes the diagonal (always first), then the sinks from the start, then from the end back
    blocks = -(-k_len // k_block)
    grid = {"q_block": q_block, "k_block": k_block, "q_len": q_len, "k_len": k_len}
    with torch.inference_mode(False):  # a tensor made in inference mode could not take part in training later
        column = torch.arange(blocks, device=device)
        scores = torch.where(column < sinks, 2 * blocks - column, column).float()
        return select_topk(scores.expand(1, 1, len(budget), blocks), budget, full_rows=full_rows, **grid)


if __name__ == "__main__":
    from methods.parts.demo import demo

    demo("streaming_llm")
