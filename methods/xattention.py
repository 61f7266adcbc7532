"""XAttention: blocks are scored by sums along antidiagonals; the best are kept until they hold a share of the row's score."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Self

import torch
from attention_kernels.block_index import BlockIndex
from attention_kernels.block_map import block_map
from torch import Tensor

from methods import register
from methods.parts.base import Knob, LayerInputs, Method
from methods.parts.forced_blocks import forced_blocks, full_forced_rows
from methods.parts.head_chunks import query_heads, select_in_chunks
from methods.parts.release import Release
from methods.parts.top_p import late_top_p_mask, top_p_mask
from methods.searches.xattention_search import LEVELS, ThresholdSearch, counts_of, parse_path

SEARCHED = "searched"
"""The value of `thresholds` that stands for the model's own file."""


def stride_groups(x: Tensor, stride: int, *, reverse: bool) -> Tensor:
    """Return x [B,H,P,D] as groups of `stride` tokens side by side: [B,H,ceil(P/stride),stride·D].

    reverse: puts the last token of a group first. The last group has zeros for tokens that it lacks.
    """
    if x.shape[2] % stride:
        x = torch.nn.functional.pad(x, (0, 0, 0, -x.shape[2] % stride))
    groups = x.unflatten(2, (-1, stride))
    return (groups.flip(3) if reverse else groups).flatten(3)


def antidiagonal_map(q: Tensor, k: Tensor, *, stride: int, block: int, scale: float) -> Tensor:
    """Return the block scores of q [B,Hq,Q,D] and k [B,Hkv,K,D]: float32 [B,Hq,Mq,Nk], each row sums to one.

    Tokens are put together in groups of `stride`; the score of two groups is the mean of the products along the antidiagonal
    of their stride × stride tile, in which every query and every key takes part once. Causal softmax over the groups, then
    its sum in each tile of blocks. A query group sees the key groups that have ended when it has, so where a chunk starts
    off the stride, its last keys count from the next group on.
    """
    shift, cols = k.shape[2] - q.shape[2], -(-k.shape[2] // block)
    q = stride_groups(q, stride, reverse=False)
    k = stride_groups(k, stride, reverse=True)[:, :, : shift // stride + q.shape[2]]
    side = block // stride
    scores = block_map(q, k, q_block=side, k_block=side, scale=scale / stride, pool="mass")
    return torch.nn.functional.pad(scores, (0, cols - scores.shape[-1]))


def chunk_tokens(tokens: int) -> int:
    """Return the tokens of the chunks in which the release scores a prompt: all of it up to 16,384, then ever fewer, down to
    2048 from 131,072 on."""
    power = 1 << (tokens - 1).bit_length()
    return max(2048, min(power, (1 << 28) // power))


@register("xattention")
class XAttention(Method):
    """Keeps the first block and the diagonal of each row, then the best others by antidiagonal scores until `threshold` of the
    row's score is kept. Each query head selects for itself.

    It needs no weights, and a search (`xattention-thresholds.json`) only for thresholds per head.

    stride: tokens from one antidiagonal to the next, 8 (the paper: 4, 8 or 16); it divides the block size, which is 128 in the
    release. threshold: share of a row's score, 0.9. Given a sparsity instead, it is calibrated, and the forced blocks take at
    most half of a row's share of the budget, the diagonal first. thresholds: one for each head, from the path of a file that
    job=search_heads made, or "searched", the file beside the model's weights. Such a file orders steps that lower one head's
    threshold from 1 on; as many are taken as keep the attention mass of one threshold of 0.9, or with a sparsity as many as
    reach it. last: query blocks at the end that keep everything, 0; not in the release.

    as_released: blocks of 128, and in the release's first chunk (`chunk_tokens`) rows start their sum without the first block,
    count it one block late, and keep the first block besides: where the sum is reached, one block more than needed.

    Deviations from the release: its thresholds per head, which it has for one model, are searched on attention mass here, not
    on accuracy; the softmax stays in float32 where it rounds to the inputs' type; its options keep_sink, which marks row 0
    instead of column 0, and keep_recent are left out, the first column and the diagonal being forced anyway.
    """

    paper = "XAttention: Block Sparse Attention with Antidiagonal Scoring, arXiv 2503.16428"
    knob = "threshold"
    family = "threshold"
    searched = "xattention-thresholds.json"
    release = Release(
        "mit-han-lab/x-attention",
        source="scripts/run_ruler.sh, eval/LongBench/pred.py",
        settings={"block_size": 128, "stride": 8},
        density={"threshold": 0.9},
        quirks={"in the first chunk of a prompt rows keep one block more": "xattn/src/utils.py"},
        rule="thresholds",
    )

    def __init__(
        self,
        *,
        block_size: int = 64,
        sparsity: float | None = None,
        seed: int = 0,
        threshold: float | None = None,
        stride: int = 8,
        thresholds: str | None = None,
        last: int = 0,
    ) -> None:
        super().__init__(block_size=block_size, sparsity=sparsity, seed=seed)
        self.take_last(last)
        self.one_of(threshold=threshold)
        if threshold is not None and not 0 <= threshold <= 1:
            raise ValueError(f"threshold={threshold}: must be a share of a row's score, from 0 to 1")
        if stride < 1 or block_size % stride:
            raise ValueError(f"stride={stride}: must divide block_size={block_size}, for example 8")
        if threshold is not None and thresholds is not None:
            raise ValueError(f"threshold={threshold} and thresholds={thresholds}: give one of them")
        self.threshold = 0.9 if threshold is None else threshold
        self.stride = stride
        self.thresholds = thresholds
        self.steps: float = 0
        self._path: list[int] = []
        self._table: Tensor | None = None

    # -- thresholds per head -----------------------------------------------------------------------------------------

    def search_file(self) -> str | None:
        """Return the file of its thresholds per head; None where one threshold serves all heads."""
        return self.searched if self.thresholds == SEARCHED else self.thresholds

    def needs_search(self) -> bool:
        return self.thresholds is not None

    def search(self, *, layers: int, heads: int, kv_heads: int, head_dim: int) -> ThresholdSearch:
        return ThresholdSearch(self, self._scores, self._forced, layers=layers, heads=heads, threshold=self.threshold)

    def load_search(self, result: Mapping[str, Any], *, layers: int, heads: int, kv_heads: int, head_dim: int) -> None:
        self._path, steps = parse_path(result, layers=layers, heads=heads)
        self._table = torch.ones(layers, heads)
        self._take(steps)

    def _take(self, steps: float) -> None:
        """Lower the heads' thresholds by so many steps of the path, from 1 on; the last step may be taken in part."""
        assert self._table is not None
        whole = min(int(steps), len(self._path))
        part = min(steps - whole, 1.0) if whole < len(self._path) else 0.0
        self.steps = whole + part if part else whole
        taken, levels = counts_of(self._path[:whole], self._table.numel()), torch.tensor(LEVELS)
        thresholds = levels[taken]
        if part:
            head = self._path[whole]
            thresholds[head] += part * (levels[taken[head] + 1] - levels[taken[head]])
        self._table = thresholds.view(self._table.shape).to(self._table.device)

    def to(self, device: Any) -> Self:
        self._table = None if self._table is None else self._table.to(device)
        return self

    def calibrates(self) -> Knob | None:
        if not self.sparsity:
            return None
        if self._table is not None:
            return Knob("steps", low=0.0, high=float(len(self._path)), rising=False)
        return Knob("threshold", low=0.0, high=1.0, rising=True)

    def set_knob(self, knob: Knob, value: float) -> None:
        if knob.name == "steps":
            self._take(value)
        else:
            super().set_knob(knob, value)

    # -- selecting ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def select(self, x: LayerInputs) -> BlockIndex:
        grid, device = self.grid(x), x.q.device
        if self.sparsity == 0:
            return BlockIndex.full(*x.q.shape[:2], **grid, device=device)
        if self.thresholds is not None and self._table is None:
            raise ValueError(f"method {self.name} has thresholds={self.thresholds} and was given none: load_search takes them")
        density = None if self.fixed_floors else 1 - self.required_sparsity()
        forced, group = self._forced(x, density), x.q.shape[1] // x.k.shape[1]
        first = self._first_chunk(x) if self.as_released else 0
        diagonal = self._in_call(forced_blocks(0, 1, self.full_rows, None, **self.prompt_grid(x), device=device), x)
        full = self.last_rows_here(full_forced_rows(self.full_rows, density, **self.prompt_grid(x)), x)

        def choose(kv: slice) -> Tensor:
            heads = query_heads(kv, group)
            scores, shares = self._scores(replace(x, q=x.q[:, heads], k=x.k[:, kv])), self._shares(x, heads)
            if not first:
                return top_p_mask(scores, forced, shares)
            late = late_top_p_mask(scores[..., :first, :], diagonal[:first], shares) | forced[:first]
            return torch.cat((late, top_p_mask(scores[..., first:, :], forced[first:], shares)), dim=-2)

        return select_in_chunks(choose, x, grid).with_last_rows(full)

    def _scores(self, x: LayerInputs) -> Tensor:
        return antidiagonal_map(x.q, x.k, stride=self.stride, block=self.block_size, scale=x.scale)

    def _forced(self, x: LayerInputs, density: float | None = None) -> Tensor:
        return self._in_call(forced_blocks(1, 1, self.full_rows, density, **self.prompt_grid(x), device=x.q.device), x)

    def _in_call(self, forced: Tensor, x: LayerInputs) -> Tensor:
        """Return the rows and blocks of a call, of forced blocks [rows, blocks] of its prompt."""
        return forced[self.rows(x), : -(-x.k.shape[2] // self.block_size)]

    def _first_chunk(self, x: LayerInputs) -> int:
        """Return how many rows begin in the first of the chunks that the release scores a prompt in."""
        grid = self.grid(x)
        tokens = chunk_tokens(x.prompt_tokens) - (grid["k_len"] - grid["q_len"])
        return min(max(0, -(-tokens // grid["q_block"])), -(-grid["q_len"] // grid["q_block"]))

    def _shares(self, x: LayerInputs, heads: slice) -> float | Tensor:
        """Return the share of its score that a row keeps, one number or [H,1,1] by head."""
        return self.threshold if self._table is None else self._table[x.layer, heads, None, None].to(x.q.device)

    def knobs(self) -> dict[str, int | float | str | bool | None]:
        if self.thresholds is None:
            return {"threshold": self.threshold, "stride": self.stride, "last": self.full_rows}
        searched = {"threshold": None, "steps": self.steps, "stride": self.stride, "thresholds": self.thresholds}
        return {**searched, "last": self.full_rows}


if __name__ == "__main__":
    from methods.parts.demo import demo

    demo("xattention")
