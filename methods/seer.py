"""SeerAttention: a trained gate per layer predicts the pooled attention map; its best blocks are kept."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal, Self, TypedDict, get_args

import torch
from torch import Tensor

from kernels.block_index import BlockIndex, causal_blocks
from kernels.selection import select_from_pooled
from methods import register
from methods.base import Grid, Knob, LayerInputs, Method, Rope
from methods.gate import AttnGate, load_gates

Selection = Literal["topk", "threshold", "nz_ratio"]


class Rule(TypedDict, total=False):
    """What decides how many blocks a row keeps, as kernels.selection takes it; one of the two."""

    budget: tuple[int, ...]
    threshold: float


@lru_cache(maxsize=64)
def nz_budget(nz_ratio: float, q_len: int, k_len: int, q_block: int, k_block: int) -> tuple[int, ...]:
    """The paper's rule: the same number of blocks in every row, or all that are causal where they are fewer."""
    blocks = max(1, int((1 - math.sqrt(1 - nz_ratio)) * -(-k_len // k_block)))
    return tuple(causal_blocks(q_len, k_len, q_block, k_block).clamp(max=blocks).tolist())


@register("seer")
class Seer(Method):
    """SeerAttention with learned gates, one selection per query head; with shared, one per group of query heads that share
    a KV head, from the mean of their logits.

    selection="topk": each row keeps its share, so that the density of a call is 1 - sparsity.
    selection="threshold": blocks whose gate probability is above `threshold` (released models: 5e-4 to 5e-3); given a
    sparsity instead, the threshold is calibrated for it.
    selection="nz_ratio": the paper's rule, the same number of blocks in every row, of which early rows have fewer.
    Unlike the released code, the diagonal block is always kept, so no row is empty, probabilities are float32, and no
    query block is dense by decree (there: the last two).
    """

    paper = "SeerAttention, arXiv 2410.13276"
    knob = "top-k | threshold"
    family = "top-k"
    weights = "gates-{block_size}.safetensors"
    gate = AttnGate
    needs_rope = True

    def __init__(
        self,
        *,
        block_size: int = 64,
        sparsity: float | None = None,
        seed: int = 0,
        selection: Selection = "topk",
        threshold: float | None = None,
        nz_ratio: float | None = None,
        q_linear: bool = False,
        shared: bool = False,
    ) -> None:
        super().__init__(block_size=block_size, sparsity=sparsity, seed=seed)
        if selection not in get_args(Selection):
            raise ValueError(f"selection={selection}: must be one of {', '.join(get_args(Selection))}")
        for name, value in (("threshold", threshold), ("nz_ratio", nz_ratio)):
            if value is not None and selection != name:
                raise ValueError(f"{name}={value} has no effect with selection={selection}: set selection={name}")
        self.selection = selection
        self.threshold = self._threshold(threshold) if selection == "threshold" else None
        self.nz_ratio = self._nz_ratio(nz_ratio) if selection == "nz_ratio" else None
        if selection == "topk":
            self.required_sparsity()
        self.q_linear = q_linear
        self.shared = shared
        self.gates: list[AttnGate] = []

    def _threshold(self, threshold: float | None) -> float | None:
        self.one_of(threshold=threshold)
        if self.sparsity == 0:
            return -1.0  # below every probability, those that underflow to 0 included
        if threshold is None:
            self.required_sparsity(", or a threshold")
            return None  # to be calibrated
        if not 0 <= threshold < 1:
            raise ValueError(f"threshold={threshold}: must be a probability, at least 0 and below 1")
        return threshold

    def calibrates(self) -> Knob | None:
        if self.selection != "threshold" or not self.sparsity:
            return None
        return Knob("threshold", low=1e-9, high=1.0, rising=False, log=True)

    def _nz_ratio(self, nz_ratio: float | None) -> float:
        self.one_of(nz_ratio=nz_ratio)
        if nz_ratio is None:
            return 1 - self.required_sparsity(", or an nz_ratio")
        if not 0 < nz_ratio <= 1:
            raise ValueError(f"nz_ratio={nz_ratio}: must be above 0 and at most 1")
        return nz_ratio

    def load(self, state: Mapping[str, Tensor], *, layers: int, heads: int, kv_heads: int, head_dim: int) -> None:
        shape = {"layers": layers, "heads": heads, "kv_heads": kv_heads, "head_dim": head_dim}
        self.gates = load_gates(state, **shape, block_size=self.block_size, q_linear=self.q_linear)

    def to(self, device: Any) -> Self:
        self.gates = [gate.to(device) for gate in self.gates]
        return self

    @torch.no_grad()
    def select(self, x: LayerInputs) -> BlockIndex:
        gate, rope, grid = *self._gate(x), self.grid(x)
        pooled_q, pooled_k = gate.pool(x.q, x.k, rope)
        queries, keys = gate.project(pooled_q, pooled_k, rope, q_len=grid["q_len"], k_len=grid["k_len"])
        share = x.q.shape[1] // x.k.shape[1] if self.shared else 1
        return select_from_pooled(queries, keys, scale=keys.shape[-1] ** -0.5, share=share, **self._rule(x, grid), **grid)

    @torch.no_grad()
    def scores(self, x: LayerInputs) -> Tensor:
        """The gate's probabilities, one map a query head; with shared, one a KV head."""
        gate, rope = self._gate(x)
        logits = gate(x.q, x.k, rope)
        return (logits.unflatten(1, (x.k.shape[1], -1)).mean(2) if self.shared else logits).softmax(-1)

    def _gate(self, x: LayerInputs) -> tuple[AttnGate, Rope]:
        """The gate of the layer, and its RoPE. Raises ValueError where one is missing."""
        if not self.gates:
            raise ValueError(f"method seer has no weights: load {self.weights_name()} first (made by job=distill)")
        if x.rope is None:
            raise ValueError("method seer needs the model's RoPE: its gates read queries and keys from before it")
        if not 0 <= x.layer < len(self.gates):
            raise ValueError(f"layer {x.layer}: there are gates for layers 0 to {len(self.gates) - 1}")
        return self.gates[x.layer], x.rope

    def _rule(self, x: LayerInputs, grid: Grid) -> Rule:
        if self.selection == "topk":
            return Rule(budget=self.budget(x))
        if self.nz_ratio is not None:
            return Rule(budget=nz_budget(self.nz_ratio, **grid))
        if self.threshold is None:
            raise ValueError(f"the threshold for sparsity={self.sparsity} has not been calibrated: see harness.calibrate")
        return Rule(threshold=self.threshold)

    def knobs(self) -> dict[str, int | float | str | bool | None]:
        return {
            "selection": self.selection,
            "threshold": self.threshold,
            "nz_ratio": self.nz_ratio,
            "q_linear": self.q_linear,
            "shared": self.shared,
        }
