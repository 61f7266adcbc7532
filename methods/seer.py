"""SeerAttention: a trained gate per layer predicts the pooled attention map; its best blocks are kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from attention_kernels.block_index import BlockIndex
from attention_kernels.gated_selection import select_gated
from attention_kernels.selection import select_from_pooled
from torch import Tensor

from methods import register
from methods.gates.attn_gate import AttnGate, load_gates
from methods.gates.pooling import USUAL_POOLING, ways_of
from methods.gates.weights import training_name, with_training_name
from methods.parts.base import LayerInputs
from methods.parts.release import Release
from methods.parts.rope_protocol import Rope
from methods.parts.scored_method import ScoredMethod, Selection


@register("seer")
class Seer(ScoredMethod):
    """Keeps the best blocks of each row by the probabilities of learned gates, one selection per query head.

    It needs the trained gates of the model (gates-{block_size}.safetensors, made by job=distill) and the model's RoPE.

    selection: the rule that turns a row's gate probabilities into blocks (see `ScoredMethod`): "threshold", as its authors
    evaluate it (5e-4 for RULER, 2e-3 for LongBench); they use "nz_ratio" for perplexity. Neither "topk" nor "nz_ratio" tells
    rows or heads apart. last: query blocks at the end that keep everything, 2, as in the release but for perplexity. q_linear:
    whether the gates project pooled queries too, as in the paper's formula. shared: one selection for the query heads of a KV
    head, from the mean of their logits. gates: name of one of several trainings, whose file is
    gates-{block_size}-{gates}.safetensors. pooling, block_rope: what the gates pool by, and whether pooled vectors get RoPE at
    the positions of their blocks (`AttnGate`): gates of their own, gates-{block_size}-{pooling}.safetensors,
    gates-{block_size}-norope.safetensors, or with a name gates-{block_size}-{gates}_norope.safetensors.

    as_released: a threshold of 5e-4, the last two query blocks in full whatever the sparsity, and probabilities rounded to the
    inputs' type before they are compared.

    Deviations from the release: the diagonal block is always kept, so that no row is empty, and probabilities are float32.
    """

    paper = "SeerAttention, arXiv 2410.13276"
    knob = "top-k | threshold"
    family = "top-k"
    weights = "gates-{block_size}.safetensors"
    gate = AttnGate
    needs_rope = True
    release = Release(
        "microsoft/SeerAttention",
        source="eval/ruler/eval_ruler.sh, eval/ruler/pred/model_wrappers.py",
        settings={"block_size": 64, "selection": "threshold", "last": 2},
        density={"threshold": 5e-4},
        quirks={"probabilities are rounded to the model's type": "seer_attn/prefill_sparse/attn_gate.py"},
        rule="selection",
    )

    def __init__(
        self,
        *,
        block_size: int = 64,
        sparsity: float | None = None,
        seed: int = 0,
        selection: Selection = "threshold",
        threshold: float | None = None,
        nz_ratio: float | None = None,
        last: int = 2,
        blocks: int | None = None,
        q_linear: bool = False,
        shared: bool = False,
        gates: str | None = None,
        pooling: str = USUAL_POOLING,
        block_rope: bool = True,
    ) -> None:
        super().__init__(
            block_size=block_size,
            sparsity=sparsity,
            seed=seed,
            selection=selection,
            threshold=threshold,
            nz_ratio=nz_ratio,
            last=last,
            blocks=blocks,
        )
        self.q_linear = q_linear
        self.shared = shared
        self.training = gates
        self.pooling = pooling
        self.block_rope = block_rope
        ways_of(pooling)
        self.gates: list[AttnGate] = []

    def weights_name(self) -> str:
        return with_training_name(self.weights, training_name(self.gate, self.knobs())).format(block_size=self.block_size)

    def load(self, state: Mapping[str, Tensor], *, layers: int, heads: int, kv_heads: int, head_dim: int) -> None:
        shape = {"layers": layers, "heads": heads, "kv_heads": kv_heads, "head_dim": head_dim}
        self.gates = load_gates(state, **shape, block_size=self.block_size, **self.gate.unusual(self.knobs()))

    def to(self, device: Any) -> Self:
        self.gates = [gate.to(device) for gate in self.gates]
        return self

    @torch.no_grad()
    def select(self, x: LayerInputs) -> BlockIndex:
        gate, rope, grid = *self._gate(x), self.grid(x)
        if self.as_released and self.threshold is not None:
            logits = self._logits(x).to(x.q.dtype)
            index = BlockIndex.from_mask(logits.softmax(-1) > self.threshold, wait=False, **grid)
            return index.with_last_rows(self.rows_in_full(x))
        share, scale = x.q.shape[1] // x.k.shape[1] if self.shared else 1, x.q.shape[-1] ** -0.5
        if x.prompt is None:
            return select_gated(*gate.sides(x.q, x.k, rope), scale=scale, share=share, **self.rule(x), **grid)
        queries = gate.queries(x.q, rope, first=grid["k_len"] - grid["q_len"])
        keys = x.block_vectors(self.block_size, lambda k, first: gate.keys(k, rope, first=first), "keys of a gate")
        return select_from_pooled(queries, keys, scale=scale, share=share, **self.rule(x), **grid)

    @torch.no_grad()
    def scores(self, x: LayerInputs) -> Tensor:
        """Return the gate's probabilities, [B,Hq,Mq,Nk] float32, or with shared [B,Hkv,Mq,Nk]."""
        return self._logits(x).softmax(-1)

    def _logits(self, x: LayerInputs) -> Tensor:
        """Return the gate's logits as they are ranked, -inf in the future: `scores` before its softmax."""
        gate, rope = self._gate(x)
        logits = gate(x.q, x.k, rope)
        return logits.unflatten(1, (x.k.shape[1], -1)).mean(2) if self.shared else logits

    def _gate(self, x: LayerInputs) -> tuple[AttnGate, Rope]:
        """Return the gate of the layer, and its RoPE. Raises ValueError where one is missing."""
        if not self.gates:
            raise ValueError(f"method seer has no weights: load {self.weights_name()} first (made by job=distill)")
        if x.rope is None:
            raise ValueError("method seer needs the model's RoPE: its gates read queries and keys from before it")
        if not 0 <= x.layer < len(self.gates):
            raise ValueError(f"layer {x.layer}: there are gates for layers 0 to {len(self.gates) - 1}")
        gate = self.gates[x.layer]
        gate.check(x.q, x.layer)
        return gate, x.rope

    def knobs(self) -> dict[str, int | float | str | bool | None]:
        return {
            "selection": self.selection,
            "threshold": self.threshold,
            "nz_ratio": self.nz_ratio,
            "q_linear": self.q_linear,
            "shared": self.shared,
            "gates": self.training,
            "pooling": self.pooling,
            "block_rope": self.block_rope,
            "last": self.full_rows,
            "blocks": self.blocks,
        }


if __name__ == "__main__":
    from methods.parts.demo import demo

    demo("seer")
