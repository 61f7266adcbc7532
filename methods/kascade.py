"""Kascade: a few anchor layers select blocks by their true attention; the layers after each reuse what it selected."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Self

import torch
from attention_kernels.block_index import BlockIndex, causal_blocks, diagonal_start
from attention_kernels.block_map import block_map
from attention_kernels.selection import row_budget, select_topk
from torch import Tensor

from methods import register
from methods.parts.base import Grid, Knob, LayerInputs, Method
from methods.parts.release import Release
from methods.searches.kascade_search import KascadeSearch, Plan, parse_plan

LEAST_TOKENS = 128
"""Keys that a row keeps at least at the native knob, as in the release."""


_Call = tuple[object, ...]
"""Shapes, type and device of the tensors of a call."""


@dataclass
class _AnchorSelection:
    """What an anchor layer selected. last: the layer that has taken it last."""

    layer: int
    index: BlockIndex
    last: int


@register("kascade")
class Kascade(Method):
    """Selects in a few anchor layers by their true attention; the layers up to the next anchor keep the same blocks.

    An anchor keeps, for each KV head and query block, the key blocks of the highest attention mass, summed over the block's
    queries and the query heads that read the KV head. Each KV head of a later layer takes the blocks of the anchor's head that
    is most like it. Which layers are anchors, and which heads are alike, is searched (`kascade-anchors.json`, optional);
    without a search there is an anchor every `every` layers, 7, and heads take the blocks of their own number. `knobs` tells
    which.

    topk: share of the keys seen that a row keeps, 0.1, and 128 keys at least; a sparsity stands in its place. anchors: how many
    anchors are taken from the search; null: 5 of 32 layers, 2 at least, all where fewer layers select. dense_first: whether
    layer 0 attends to everything, as in the paper, and still selects for the layers after it; null: only without a sparsity,
    which all layers keep alike; with both, the share of the other layers is searched. rolling_prefill: whether a row's share is
    of the keys that it sees; otherwise all rows keep as many as the last, or all they see; null: as the paper, true, and as
    released, false.

    Reusing costs nothing; an anchor costs more than dense attention, since the exact map is a pass of its own. Deviations from
    the paper: blocks of keys instead of single keys; query tiles of the block size instead of 32; the search takes the mean
    similarity over query blocks, not the least, and doesn't weigh layers by how much they change the hidden state.
    """

    paper = "Kascade, arXiv 2512.16391"
    knob = "top-k"
    family = "top-k"
    searched = "kascade-anchors.json"
    release = Release(
        "microsoft/kascade",
        source="scripts/eval_lb.py",
        settings={"block_size": 32},
        density={"topk": 0.1},
        quirks={
            "every row keeps the share of the whole prompt, unless rolling_prefill": "src/strategies/KascadeStrategy.py",
            "a row's own tile is in the share, and with rolling_prefill beside it": "src/strategies/KascadeStrategy.py",
        },
    )
    shared = True
    """Whether the query heads of a KV head have one index."""

    def __init__(
        self,
        *,
        block_size: int = 64,
        sparsity: float | None = None,
        seed: int = 0,
        topk: float | None = None,
        anchors: int | None = None,
        every: int = 7,
        dense_first: bool | None = None,
        rolling_prefill: bool | None = None,
    ) -> None:
        super().__init__(block_size=block_size, sparsity=sparsity, seed=seed)
        self.one_of(topk=topk)
        if topk is not None and not 0 < topk <= 1:
            raise ValueError(f"topk={topk}: must be a share of the keys, above 0 and at most 1")
        for name, value in (("anchors", anchors), ("every", every)):
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}: must be at least 1 layer")
        self.topk = (0.1 if topk is None else topk) if sparsity is None else None
        self.anchors = anchors
        self.every = every
        self.dense_first = sparsity is None if dense_first is None else dense_first
        self.rolling_prefill = rolling_prefill
        self.plan: Plan | None = None
        self._maps: dict[int, Tensor] = {}
        self._selected: dict[_Call, _AnchorSelection] = {}

    # -- the plan of a search ----------------------------------------------------------------------------------------

    def search(self, *, layers: int, heads: int, kv_heads: int, head_dim: int) -> KascadeSearch:
        return KascadeSearch(layers, kv_heads, block_size=self.block_size, share=self.topk or 1 - self.required_sparsity())

    def load_search(self, result: Mapping[str, Any], *, layers: int, heads: int, kv_heads: int, head_dim: int) -> None:
        self.plan = parse_plan(result, self.anchors, layers=layers, kv_heads=kv_heads)
        self._maps = {layer: torch.tensor(heads) for layer, heads in self.plan.heads.items()}
        self._selected = {}

    def to(self, device: Any) -> Self:
        self._maps = {layer: heads.to(device) for layer, heads in self._maps.items()}
        return self

    def calibrates(self) -> Knob | None:
        """Return the share of the other layers where a dense first one takes its part of the density."""
        return Knob("topk", low=1e-3, high=1.0, rising=True, log=True) if self.sparsity and self.dense_first else None

    # -- selecting ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def select(self, x: LayerInputs) -> BlockIndex | None:
        call = (x.q.shape, x.k.shape, x.q.dtype, x.q.device)
        selected = self._selected.get(call)
        if selected is None or not selected.layer < x.layer >= selected.last or not self._reuses(x.layer, selected):
            if self.plan is not None and x.layer not in self.plan.anchors:
                raise ValueError(
                    f"method {self.name} reuses in layer {x.layer} what layer {self.plan.anchor(x.layer)} selected, and that "
                    "has selected nothing for this prompt: give it all layers, in their order"
                )
            if x.q.shape[2] == x.k.shape[2]:  # of a prompt in chunks, what was selected for each is still to be reused
                self._selected = {}
            selected = self._selected[call] = _AnchorSelection(x.layer, self._exact(x), x.layer)
        selected.last = x.layer
        if self.dense_first and x.layer == 0:
            return None
        heads = self._maps.get(x.layer)
        if heads is None:
            if self.plan is not None and x.layer != selected.layer:
                raise ValueError(f"method {self.name} has no heads for layer {x.layer}, which its search never saw")
            return selected.index
        heads = heads.to(x.q.device)
        return replace(
            selected.index,
            counts=selected.index.counts.index_select(1, heads),
            indices=selected.index.indices.index_select(1, heads),
        )

    def _reuses(self, layer: int, selected: _AnchorSelection) -> bool:
        """Return whether a layer takes the blocks of the layer that selected last.

        Without a search the first layer of every `every` that selects is the anchor of the others: layers of a sliding window
        never select.
        """
        if self.plan is None:
            return layer // self.every == selected.layer // self.every
        return self.plan.anchor(layer) == selected.layer

    def _exact(self, x: LayerInputs) -> BlockIndex:
        """Return the best blocks of the layer's true attention, one choice for each KV head."""
        grid = self.grid(x)
        mass = block_map(x.q, x.k, q_block=grid["q_block"], k_block=grid["k_block"], scale=x.scale, pool="mass")
        mass = mass.unflatten(1, (x.k.shape[1], -1)).mean(2)
        return select_topk(mass, self._budget(x), **grid)

    def _budget(self, x: LayerInputs) -> tuple[int, ...]:
        return self._prompt_budget(self.prompt_grid(x))[self.rows(x)]

    def _prompt_budget(self, grid: Grid) -> tuple[int, ...]:
        rolling = not self.as_released if self.rolling_prefill is None else self.rolling_prefill
        if self.topk is None or self.sparsity is not None:
            density = 1 - self.required_sparsity() if self.topk is None else self.topk
            return (row_budget if rolling else even_budget)(density, **grid)
        if self.as_released or not rolling:
            return released_budget(self.topk, rolling=rolling, **grid)
        return native_budget(self.topk, **grid)

    def knobs(self) -> dict[str, int | float | str | bool | None]:
        anchors = f"every {self.every}" if self.plan is None else ",".join(map(str, self.plan.anchors))
        heads = "own" if self.plan is None else "searched"
        return {
            "topk": self.topk,
            "anchor_layers": anchors,
            "heads": heads,
            "dense_first": self.dense_first,
            "rolling_prefill": self.rolling_prefill,
        }


def native_budget(share: float, *, q_block: int, k_block: int, q_len: int, k_len: int) -> tuple[int, ...]:
    """Return the blocks that each row keeps: a share of those it sees, and LEAST_TOKENS at least."""
    causal = causal_blocks(q_len, k_len, q_block, k_block).tolist()
    budget = row_budget(share, q_len, k_len, q_block, k_block)
    least = -(-LEAST_TOKENS // k_block)
    return tuple(min(seen, max(blocks, least)) for seen, blocks in zip(causal, budget, strict=True))


@lru_cache(maxsize=64)
def released_budget(share: float, *, rolling: bool, q_block: int, k_block: int, q_len: int, k_len: int) -> tuple[int, ...]:
    """Return the blocks that each row keeps in the release, whose keys are rounded up to whole blocks.

    A share of all keys, LEAST_TOKENS at least, the row's own tile among them; rolling: beside its own tile the share of what is
    before it, LEAST_TOKENS at least, and no more than the others would have.
    """
    causal, first = causal_blocks(q_len, k_len, q_block, k_block), diagonal_start(q_len, k_len, q_block, k_block)
    before = min(max(LEAST_TOKENS, int(share * k_len)), k_len) - q_block  # keys beside the row's own
    budget = []
    for row, (seen, own) in enumerate(zip(causal.tolist(), (causal - first).tolist(), strict=True)):
        start = row * q_block + k_len - q_len
        keys = min(before, max(LEAST_TOKENS, math.floor(share * start + 1e-9))) if rolling else before
        budget.append(min(seen, own + max(0, -(-keys // k_block))))
    return tuple(budget)


@lru_cache(maxsize=64)
def even_budget(density: float, *, q_block: int, k_block: int, q_len: int, k_len: int) -> tuple[int, ...]:
    """Return as many blocks for every row, or all that it sees, so that the density of the call is as asked: what whole numbers
    leave over is one more for the last rows."""
    causal = causal_blocks(q_len, k_len, q_block, k_block)
    total = round(density * int(causal.sum()))
    low, high = 1, int(causal.max())
    while low < high:  # the most that don't exceed the total
        middle = (low + high + 1) // 2
        low, high = (middle, high) if int(causal.clamp(max=middle).sum()) <= total else (low, middle - 1)
    budget = causal.clamp(max=low)
    room = (causal > low).nonzero().squeeze(-1)
    left = max(0, total - int(budget.sum()))
    budget[room[len(room) - min(left, len(room)) :]] += 1
    return tuple(budget.tolist())


if __name__ == "__main__":
    from methods.parts.demo import demo

    demo("kascade")
