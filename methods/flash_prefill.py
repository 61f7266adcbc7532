"""FlashPrefill: blocks whose score is at least a share of their row's best are kept; nothing is sorted or summed up."""

from __future__ import annotations

import math

import torch
from attention_kernels.block_index import BlockIndex
from attention_kernels.key_mean_map import key_mean_map
from attention_kernels.pool import pool

from methods import register
from methods.parts.base import Knob, LayerInputs, Method
from methods.parts.forced_blocks import forced_blocks, full_forced_rows
from methods.parts.release import Release


@register("flash_prefill")
class FlashPrefill(Method):
    """Keeps the blocks whose score(i, j) = Σ exp(q_t · mean key of block j × scale), over the queries t of block i at or past
    the end of block j, is at least alpha × the row's highest. Each query head selects for itself.

    Queries are not pooled, and a block that has not ended for any of a row's queries has no score: of the diagonal block only
    its last token counts. It needs no weights and no search.

    alpha: share of the row's highest score, 0.18, the release's for Llama-3.1 (0.12 for Qwen3, 0.08 for Qwen2.5). sinks: first
    blocks that each row keeps whatever they score, 2. window: latest blocks that it keeps so, its own with them, 4. last:
    query blocks at the end that keep everything, 2. as_released: blocks of 128 tokens, and sinks, window and last rows that
    don't shrink.

    Given a sparsity, alpha is calibrated for it, and the forced blocks shrink where they would leave the scores no say: full
    rows and the diagonal take at most half of the budget (the diagonal always stays), and sinks and window get half of each
    other row's budget. An alpha above 1 leaves nothing but these. The release divides by the row's sum, which is in both sides
    of the comparison; logarithms are compared here. It is for whole prompts.
    """

    paper = "FlashPrefill, arXiv 2603.06199"
    knob = "alpha"
    family = "threshold"
    release = Release(
        "qhfan/FlashPrefill",
        source="ruler/models/llama.py",
        settings={"block_size": 128, "sinks": 2, "window": 4, "last": 2},
        density={"alpha": 0.18},
    )

    def __init__(
        self,
        *,
        block_size: int = 64,
        sparsity: float | None = None,
        seed: int = 0,
        alpha: float | None = None,
        sinks: int = 2,
        window: int = 4,
        last: int = 2,
    ) -> None:
        super().__init__(block_size=block_size, sparsity=sparsity, seed=seed)
        self.one_of(alpha=alpha)
        if alpha is not None and not 0 < alpha <= 1:
            raise ValueError(f"alpha={alpha}: must be a share of the row's highest score, above 0 and at most 1")
        for name, value, least in (("sinks", sinks, 0), ("window", window, 1), ("last", last, 0)):
            if value < least:
                raise ValueError(f"{name}={value}: must be at least {least} blocks")
        self.alpha = 0.18 if alpha is None else alpha
        self.sinks, self.window, self.last = sinks, window, last

    def calibrates(self) -> Knob | None:
        return Knob("alpha", low=1e-6, high=1.1, rising=False, log=True) if self.sparsity else None

    @torch.no_grad()
    def select(self, x: LayerInputs) -> BlockIndex:
        grid, device = self.grid(x), x.q.device
        if self.sparsity == 0:
            return BlockIndex.full(*x.q.shape[:2], **grid, device=device)
        density = None if self.fixed_floors else 1 - self.required_sparsity()
        of_prompt = self.prompt_grid(x)
        forced = forced_blocks(self.sinks, self.window, self.last, density, **of_prompt, device=device)
        forced = forced[self.rows(x), : -(-grid["k_len"] // grid["k_block"])]
        # mean keys in the inputs' type, as the release has them: the product then runs on tensor cores
        means = x.block_vectors(
            self.block_size, lambda k, _: pool(k, self.block_size, ("mean",)).to(x.q.dtype), "means in the keys' type"
        )
        scores = key_mean_map(x.q, means, q_block=self.block_size, k_block=self.block_size, k_len=grid["k_len"], scale=x.scale)
        best = scores.amax(-1, keepdim=True)
        index = BlockIndex.from_mask((scores >= best + math.log(self.alpha)) | forced, **grid, wait=False)
        return index.with_last_rows(self.last_rows_here(full_forced_rows(self.last, density, **of_prompt), x))

    def knobs(self) -> dict[str, int | float | str | bool | None]:
        return {"alpha": self.alpha, "sinks": self.sinks, "window": self.window, "last": self.last}


if __name__ == "__main__":
    from methods.parts.demo import demo

    demo("flash_prefill")
