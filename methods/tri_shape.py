"""Tri-shape: the first tokens, a window of the latest ones, and the last queries of the prompt in full."""

from __future__ import annotations

from methods import register
from methods.parts.base import Grid, LayerInputs
from methods.parts.release import Release
from methods.parts.row_budgets import budget_with_full_rows, even_budget, rows_of_last_queries
from methods.streaming_llm import StreamingLLM


@register("tri_shape")
class TriShape(StreamingLLM):
    """Keeps StreamingLLM's sinks and window (an "A-shape"), and everything for the query blocks of the last `last` tokens.

    It needs no weights and no search.

    sinks: tokens at the start that all rows see, 128. window: tokens before and with the row's last one, 3968. last: queries
    kept in full, 100. The defaults are those of MInference's release; each is rounded up to whole blocks.

    as_released: the full rows are as many as asked for whatever the sparsity.

    With a sparsity instead of a window, each row spends its share of the budget as in StreamingLLM. Deviation, only with a
    sparsity: the full rows are as many as half of the budget pays, so that any sparsity can be reached at short lengths.
    """

    paper = "SCBench (Tri-shape), arXiv 2412.10319"
    knob = "window"
    family = "static"
    release = Release(
        "microsoft/MInference",
        source="minference/models_patch.py",
        settings={"sinks": 128, "last": 100},
        density={"window": 3968},
    )

    def __init__(
        self,
        *,
        block_size: int = 64,
        sparsity: float | None = None,
        seed: int = 0,
        window: int | None = None,
        sinks: int = 128,
        last: int = 100,
    ) -> None:
        if window is None and sparsity is None:
            window = 3968
        super().__init__(block_size=block_size, sparsity=sparsity, seed=seed, window=window, sinks=sinks)
        if last < 0:
            raise ValueError(f"last={last}: must be at least 0 tokens")
        self.last = last

    def row_budgets(self, x: LayerInputs) -> tuple[int, ...]:
        if self.window is None:
            return self.budget(x)
        return even_budget(self.native_blocks(self.window), self.rows_in_full(x), **self.grid(x))

    def prompt_budget(self, grid: Grid) -> tuple[int, ...]:
        return self._full_and_budget(grid)[1]

    def prompt_rows_in_full(self, grid: Grid) -> int:
        if self.window is None:
            return self._full_and_budget(grid)[0]
        return rows_of_last_queries(self.last, grid["q_len"], self.block_size)

    def _full_and_budget(self, grid: Grid) -> tuple[int, tuple[int, ...]]:
        """Return the full rows of a prompt and the blocks of each of its rows, with a sparsity."""
        rows = rows_of_last_queries(self.last, grid["q_len"], self.block_size)
        return budget_with_full_rows(1 - self.required_sparsity(), rows, **grid, whole=self.as_released)

    def knobs(self) -> dict[str, int | float | str | bool | None]:
        return {**super().knobs(), "last": self.last}


if __name__ == "__main__":
    from methods.parts.demo import demo

    demo("tri_shape", sinks=32, last=64)  # the defaults are for prompts of many thousands of tokens
