"""Quest: pages of keys ranked by a bound on the scores in them, from the smallest and largest of each element."""

from __future__ import annotations

import torch
from attention_kernels.block_index import BlockIndex
from attention_kernels.pool import pool
from attention_kernels.selection import step_index
from attention_kernels.step_scores import step_scores
from torch import Tensor

from methods.decode import register
from methods.decode.parts.base import DecodeMethod, StepInputs
from methods.decode.parts.block_vectors import BlockVectors, newest, per_sequence
from methods.parts.release import Release


@register("quest")
class Quest(DecodeMethod):
    """Keeps the pages (blocks) of highest score = Σ_d max(q_d · min_d, q_d · max_d), which bounds the query's product with any
    key of the page from above.

    Each query head keeps the best `budget` tokens of pages, three pages at least, the newest always. The first two layers are
    dense, as in the release. It needs no weights.

    shared: one choice for the query heads of a KV head, by the mean of their scores.

    As released, which is as its evaluation of accuracy runs, the newest page competes like any other and may be left out. Of a
    cache shorter than the budget only as many pages are kept as it fills. (The release's CUDA kernels keep the newest page.)
    """

    paper = "Quest, arXiv 2406.10774"
    family = "top-k"
    least_blocks = 3
    release = Release(
        "mit-han-lab/Quest",
        source="scripts/longbench.sh",
        settings={"block_size": 16, "dense_layers": 2, "shared": False},
        density={"budget": 1024},
        quirks={
            "the newest page competes, and may be left out": "evaluation/quest_attention.py",
            "a cache shorter than the budget loses a page where it doesn't fill its last": "evaluation/quest_attention.py",
        },
    )

    def __init__(
        self,
        *,
        block_size: int = 16,
        budget: int | None = None,
        sparsity: float | None = None,
        dense_layers: int = 2,
        seed: int = 0,
        shared: bool = False,
    ) -> None:
        super().__init__(block_size=block_size, budget=budget, sparsity=sparsity, dense_layers=dense_layers, seed=seed)
        self.shared = shared

    def start(self, x: StepInputs) -> BlockVectors:
        bounds = per_sequence(x, lambda k: pool(k, self.block_size, ("max", "min")).to(k.dtype))  # exact: of k's own values
        return BlockVectors(bounds)

    def extend(self, state: BlockVectors, x: StepInputs) -> None:
        key = x.k[:, :, -1]
        state.reserve(-(-x.k.shape[2] // self.block_size))
        page, place = newest(x, self.block_size)
        top, bottom = state.read(page).chunk(2, -1)
        grown = torch.cat((torch.maximum(top, key), torch.minimum(bottom, key)), -1)
        state.write(page, torch.where((place == 0)[:, None, None], key.repeat(1, 1, 2), grown))

    def select(self, x: StepInputs, state: BlockVectors) -> BlockIndex | None:
        if self.as_released:
            return self._release_select(x, state)
        if self.keeps_all(x):
            return None
        return self.best(self.scores(x, state), x)

    def _release_select(self, x: StepInputs, state: BlockVectors) -> BlockIndex | None:
        """Return the best pages of each list, the newest among the others."""
        length, pages = x.k.shape[2], -(-x.k.shape[2] // self.block_size)
        if self.budget is None:
            width, counts = self.keep(pages), self._counts(self.blocks(x))
        else:
            width = min(pages, max(self.least_blocks, min(length, self.budget) // self.block_size))
            full = x.lengths().clamp(max=self.budget) // self.block_size
            counts = torch.minimum(self.blocks(x), full.clamp(min=self.least_blocks))
        if width == pages and x.starts is None:
            return None
        scores = self.scores(x, state)
        own = torch.arange(pages, device=scores.device) < self.blocks(x)[:, None, None]
        order = scores.masked_fill(~own, float("-inf")).sort(dim=-1, descending=True, stable=True).indices[..., :width]
        taken = (torch.arange(width, device=scores.device) < counts[:, None, None]).expand_as(order)
        selected = torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, order, taken)
        return step_index(selected, width, k_block=self.block_size, k_len=length)

    def scores(self, x: StepInputs, state: BlockVectors) -> Tensor:
        """Return the scores [B,H,Nk] float32, unscaled.

        max(q·min, q·max) is q·max where q is positive and q·min where it is negative: one product with both side by side. It is
        linear in its factors, so that the mean over a group of heads is that of their queries.
        """
        q = x.q[:, :, 0]
        parts = torch.cat((q.clamp(min=0), q.clamp(max=0)), -1)
        if self.shared:
            parts = parts.unflatten(1, (x.k.shape[1], -1)).mean(2)
        return step_scores(parts, state.values)

    def knobs(self) -> dict[str, int | float | str | bool | None]:
        return super().knobs() | {"shared": self.shared}


if __name__ == "__main__":
    from methods.decode.parts.demo import demo

    demo("quest")
