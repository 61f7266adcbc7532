"""Kascade's offline search: the anchor layers that select, and the anchor's head that each head of the others follows."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from attention_kernels.block_map import block_map
from attention_kernels.selection import row_budget, select_topk
from torch import Tensor

from methods.parts.base import LayerInputs

MOST_ANCHORS = 8
"""Numbers of anchors that one search answers for, from 1 on, more where `usual_anchors` is; the release prints 3 to 8."""


def usual_anchors(layers: int) -> int:
    """Return the anchors of a model of so many layers where no number is given: 5 of 32, as in the paper, 2 at least."""
    return max(2, round(layers * 5 / 32))


@dataclass(frozen=True)
class Plan:
    """The layers that select, and what the others take from them.

    anchors: layers that select, ascending. heads: for each other layer, the anchor's KV head whose blocks each of its KV heads
    takes.
    """

    anchors: tuple[int, ...]
    heads: dict[int, tuple[int, ...]]

    def anchor(self, layer: int) -> int:
        """Return the anchor whose blocks a layer keeps. Raises ValueError for a layer before the first."""
        before = [anchor for anchor in self.anchors if anchor <= layer]
        if not before:
            raise ValueError(f"layer {layer} comes before the first anchor, {self.anchors[0]}")
        return before[-1]


def parse_plan(result: Mapping[str, Any], number: int | None, *, layers: int, kv_heads: int) -> Plan:
    """Return the plan with `number` anchors out of a search's result.

    None takes as many anchors as usual, or the most that it has a plan for where few layers select. Raises ValueError, one
    line, where the result doesn't fit the model.
    """
    try:
        shape = operator.index(result["layers"]), operator.index(result["kv_heads"])
        choices: Mapping[str, Any] = result["choices"]
        numbers = ", ".join(choices)
        if number is None:
            number = min(usual_anchors(layers), max(map(int, choices)))
        choice = choices.get(str(number))
        if choice is not None:
            heads = {int(layer): tuple(map(operator.index, layer_heads)) for layer, layer_heads in choice["heads"].items()}
            plan = Plan(tuple(map(operator.index, choice["anchors"])), heads)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"not what a search for anchor layers writes: {error!r} is wrong; search again") from error
    if shape != (layers, kv_heads):
        raise ValueError(f"searched in {shape[0]} layers of {shape[1]} KV heads; the model has {layers} of {kv_heads}")
    if choice is None:
        raise ValueError(f"no plan of {number} anchors was searched; choose one of: {numbers}")
    for layer, heads_taken in plan.heads.items():
        inside = len(heads_taken) == kv_heads and all(0 <= head < kv_heads for head in heads_taken) and 0 <= layer < layers
        if not inside:
            taken = list(heads_taken)
            raise ValueError(f"layer {layer} takes the blocks of heads {taken}: not {kv_heads} of 0 to {kv_heads - 1}")
    if not plan.anchors or list(plan.anchors) != sorted(set(plan.anchors)):
        raise ValueError(f"anchors={list(plan.anchors)}: must ascend, at least one")
    return plan


class KascadeSearch:
    """Measures how alike the KV heads of two layers are, and places anchors so that layers are most like their anchors.

    The similarity of two heads is, of the attention mass that a head's own best blocks keep, the share that the other head's
    blocks keep; the mean over query blocks and prompts. (The release takes the query tile of a prompt where it is least: with
    blocks of keys, heads that have nothing in common tie there.)

    A layer's similarity to an anchor is the mean over its heads, each with the anchor's head most like it. Anchors are placed
    to make the sum over layers largest, by dynamic programming, for every number of them up to MOST_ANCHORS or `usual_anchors`;
    the first layer that selects is always one. For each prompt the selections of all layers are held: a bool for each of
    kv_heads · Mq · Nk.
    """

    def __init__(self, layers: int, kv_heads: int, *, block_size: int, share: float) -> None:
        self.layers, self.kv_heads = layers, kv_heads
        self.block_size, self.share = block_size, share
        self.prompts = 0
        self._masks: dict[int, Tensor] = {}
        self._sums: dict[tuple[int, int], Tensor] = {}

    @torch.no_grad()
    def observe(self, x: LayerInputs, v: Tensor) -> None:
        """Take in one layer of one prompt; v is not looked at."""
        if not self._masks or x.layer <= max(self._masks):
            self._masks = {}
            self.prompts += 1
        grid = {"q_block": self.block_size, "k_block": self.block_size, "q_len": x.q.shape[2], "k_len": x.k.shape[2]}
        mass = block_map(x.q, x.k, q_block=self.block_size, k_block=self.block_size, scale=x.scale, pool="mass")
        mass = mass.unflatten(1, (x.k.shape[1], -1)).mean(2)
        mask = select_topk(mass, row_budget(self.share, **grid), **grid).to_mask()
        best = (mass * mask).sum(-1)  # [B,Hkv,Mq]
        rows = mass.transpose(1, 2)  # [B,Mq,Hkv,Nk]
        self._masks[x.layer] = mask
        for anchor, anchor_mask in self._masks.items():
            shared = rows @ anchor_mask.permute(0, 2, 3, 1).to(rows.dtype)  # [B,Mq,Hkv of this layer,Hkv of the anchor]
            alike = (shared / best.transpose(1, 2).unsqueeze(-1)).mean((0, 1)).double().cpu()
            self._sums[anchor, x.layer] = self._sums.get((anchor, x.layer), torch.zeros_like(alike)) + alike

    def similarity(self, anchor: int, layer: int) -> Tensor:
        """Return the similarity of a layer's heads to an anchor's, float64 [Hkv of the layer, Hkv of the anchor]."""
        return self._sums[anchor, layer] / self.prompts

    def result(self) -> dict[str, Any]:
        """Return the plan for each number of anchors, under `choices`. Raises ValueError where nothing was observed."""
        if not self.prompts:
            raise ValueError("no prompt was observed: there is nothing to search in")
        seen = sorted({layer for _, layer in self._sums})
        alike = {pair: float(self.similarity(*pair).amax(-1).mean()) for pair in self._sums}
        choices = {}
        for number in range(1, min(max(MOST_ANCHORS, usual_anchors(self.layers)), len(seen)) + 1):
            anchors, total = best_anchors(alike, seen, number)
            plan = Plan(anchors, {})
            heads = {
                str(layer): self.similarity(plan.anchor(layer), layer).argmax(-1).tolist()
                for layer in seen
                if layer not in anchors
            }
            choices[str(number)] = {"anchors": list(anchors), "heads": heads, "similarity": round(total / len(seen), 4)}
        return {
            "layers": self.layers,
            "kv_heads": self.kv_heads,
            "block_size": self.block_size,
            "share": round(self.share, 6),
            "prompts": self.prompts,
            "choices": choices,
        }


def best_anchors(alike: Mapping[tuple[int, int], float], layers: list[int], number: int) -> tuple[tuple[int, ...], float]:
    """Return `number` anchors out of `layers` that make the sum over layers of alike[anchor, layer] largest, and that sum.

    The first layer is always an anchor. Of equal plans the one whose anchors come earlier is taken.
    """

    def span(first: int, end: int) -> float:
        return sum(alike[layers[first], layer] for layer in layers[first:end])

    # best[i]: the plan of the layers from i on, when i is an anchor and `remaining` anchors are to be placed
    best: dict[int, tuple[float, tuple[int, ...]]] = {i: (span(i, len(layers)), (layers[i],)) for i in range(len(layers))}
    for remaining in range(2, number + 1):
        best = {
            i: max(
                ((span(i, j) + best[j][0], (layers[i], *best[j][1])) for j in range(i + 1, len(layers)) if j in best),
                key=lambda plan: (round(plan[0], 9), tuple(-anchor for anchor in plan[1])),
            )
            for i in range(len(layers) - remaining + 1)
        }
    total, anchors = best[0]
    return anchors, total
