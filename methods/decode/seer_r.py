"""SeerAttention-R: a trained gate per layer predicts which key blocks the newest token needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from attention_kernels.block_index import BlockIndex
from attention_kernels.pool import pool
from attention_kernels.rope import unrotate
from attention_kernels.selection import select_step, step_index
from attention_kernels.step_scores import step_scores
from torch import Tensor

from methods.decode import register
from methods.decode.parts.base import DecodeMethod, StepInputs
from methods.decode.parts.block_vectors import BlockVectors, newest, per_sequence
from methods.gates.decode_gate import DecodeGate, load_decode_gates
from methods.gates.gate import POOLED_K
from methods.parts.release import Release
from methods.parts.rope_protocol import Rope


@dataclass
class _State:
    """The state of one layer.

    keys: the gate's vector of every block. high, low, total: the elementwise largest, smallest and sum of the keys of each
    sequence's newest block, from before RoPE, float32 [B,Hkv,D].
    """

    keys: BlockVectors
    high: Tensor
    low: Tensor
    total: Tensor


@register("seer_r")
class SeerR(DecodeMethod):
    """Keeps the best blocks by a trained gate's scores, one choice for the query heads of a KV head, and the newest block.

    It needs the trained gates of the model (decode-gates-{block_size}.safetensors, made by job=distill) and the model's RoPE.

    threshold: instead of a budget, keeps the blocks whose share of the gate's softmax over the blocks before the newest is
    above it (the paper: 2e-3 to 6e-3). first: whether the first block is always kept, as in the released kernel; it counts in
    the budget. Deviation: see methods.gates.decode_gate on blocks that are completed while decoding.

    As released, the newest block has logit 0 until it is full, and competes; it and the first block are kept beside the budget
    (within it where a sparsity sets it). A block that is completed while decoding is turned by its last token's position. Of
    the block that the prompt left unfinished, all layers but the first lose its first key, and pool a zero vector instead.
    """

    paper = "SeerAttention-R, arXiv 2506.08889"
    knob = "budget | threshold"
    family = "top-k"
    default_budget = 4096
    weights = "decode-gates-{block_size}.safetensors"
    gate = DecodeGate
    needs_rope = True
    release = Release(
        "microsoft/SeerAttention",
        source="eval/reasoning_tasks/scripts/eval_seer_sparse.sh",
        settings={"block_size": 64, "dense_layers": 0},
        density={"budget": 4096},
        quirks={
            "the newest block has logit 0 until it is full": "seer_attn/decode_sparse/attn_gate_inf.py",
            "the newest block is kept beside the budget": "seer_attn/decode_sparse/attn_gate_inf.py",
            "the newest block is part of the threshold's softmax": "seer_attn/decode_sparse/attn_gate_inf.py",
            "the first block is kept beside the budget": (
                "seer_attn/kernels/varlen/block_sparse_flash_decode_varlen_mask_leftpad.py"
            ),
            "RoPE of a block completed while decoding is its last token's": "seer_attn/decode_sparse/attn_gate_inf.py",
            "past layer 0, the prompt's unfinished block loses its first key": "seer_attn/decode_sparse/cache_utils.py",
        },
    )

    def __init__(
        self,
        *,
        block_size: int = 64,
        budget: int | None = None,
        sparsity: float | None = None,
        dense_layers: int = 0,
        seed: int = 0,
        threshold: float | None = None,
        first: bool = False,
    ) -> None:
        super().__init__(block_size=block_size, budget=budget, sparsity=sparsity, dense_layers=dense_layers, seed=seed)
        if threshold is not None:
            if budget is not None or sparsity is not None or (first and not self.as_released):
                raise ValueError(f"threshold={threshold}: give no budget, sparsity or first beside it")
            if not 0 <= threshold < 1:
                raise ValueError(f"threshold={threshold}: must be a probability, at least 0 and below 1")
            self.budget = None
        self.threshold = threshold
        self.first = first or self.as_released
        self.gates: list[DecodeGate] = []

    @classmethod
    def release_knobs(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        knobs = super().release_knobs(given)
        if given.get("threshold") is not None and given.get("budget") is None:
            knobs.pop("budget")
        return knobs

    def load(self, state: Mapping[str, Tensor], *, layers: int, heads: int, kv_heads: int, head_dim: int) -> None:
        shape = {"layers": layers, "heads": heads, "kv_heads": kv_heads, "head_dim": head_dim}
        self.gates = load_decode_gates(state, **shape, block_size=self.block_size)

    def to(self, device: Any) -> Self:
        self.gates = [gate.to(device) for gate in self.gates]
        return self

    @torch.no_grad()
    def start(self, x: StepInputs) -> _State:
        gate, rope = self._gate(x)
        cos, sin = rope.table(x.k.shape[2], x.k.device)

        def pooled(k: Tensor) -> Tensor:
            return pool(k, self.block_size, POOLED_K, cos=cos[: k.shape[2]], sin=sin[: k.shape[2]]).float()

        blocks = per_sequence(x, pooled)
        keys = gate.keys(blocks, *(table[:: self.block_size][: blocks.shape[2]] for table in (cos, sin)))
        block, place = newest(x, self.block_size)
        high, low, mean = BlockVectors(blocks).read(block).chunk(3, -1)
        state = _State(BlockVectors(keys), high, low, mean * (place + 1)[:, None, None])
        if self.as_released:
            self._release_start(state, x, cos, sin)
        return state

    def _release_start(self, state: _State, x: StepInputs, cos: Tensor, sin: Tensor) -> None:
        """Make of a state what the release has of a block that the prompt leaves unfinished: a vector of zeros and, past the
        first layer, a zero key in place of the block's first one. Full blocks stay as they are."""
        block, place = newest(x, self.block_size)
        unfinished = (place + 1 < self.block_size)[:, None, None]
        state.keys.write(block, torch.where(unfinished, 0.0, state.keys.read(block)))
        if x.layer == 0:
            return
        at = block[:, None] * self.block_size + torch.arange(self.block_size, device=block.device)  # [B,T]
        begin = 0 if x.starts is None else x.starts.long()[:, None]
        column = (at + begin).clamp(max=x.k.shape[2] - 1)[:, None, :, None].expand(-1, x.k.shape[1], -1, x.k.shape[3])
        row = at.clamp(max=len(cos) - 1)[:, None]
        keys = unrotate(x.k.gather(2, column), cos[row], sin[row]).float()
        own = (at > block[:, None] * self.block_size) & (at < x.lengths()[:, None])
        keys = keys.masked_fill(~own[:, None, :, None], 0.0)  # the first key among the zeros
        state.high = torch.where(unfinished, keys.amax(2), state.high)
        state.low = torch.where(unfinished, keys.amin(2), state.low)
        state.total = torch.where(unfinished, keys.sum(2), state.total)

    @torch.no_grad()
    def extend(self, state: _State, x: StepInputs) -> None:
        gate, rope = self._gate(x)
        cos, sin = rope.table(x.k.shape[2], x.k.device)
        block, place = newest(x, self.block_size)
        at = (x.lengths() - 1)[:, None]  # [B,1], as the tables' rows then broadcast over heads
        key = unrotate(x.k[:, :, -1], cos[at], sin[at]).float()
        begins = (place == 0)[:, None, None]
        state.high = torch.where(begins, key, torch.maximum(state.high, key))
        state.low = torch.where(begins, key, torch.minimum(state.low, key))
        state.total = torch.where(begins, key, state.total + key)
        pooled = torch.cat((state.high, state.low, state.total / (place + 1)[:, None, None]), -1)
        begin = (block * self.block_size)[:, None, None]
        turned = at[:, None] if self.as_released else begin
        keys = gate.keys(pooled[:, :, None], cos[turned], sin[turned])[:, :, 0]
        if self.as_released:
            keys = torch.where((place + 1 == self.block_size)[:, None, None], keys, 0.0)
        state.keys.reserve(-(-x.k.shape[2] // self.block_size))
        state.keys.write(block, keys)

    @torch.no_grad()
    def select(self, x: StepInputs, state: _State) -> BlockIndex | None:
        if self.as_released and self.sparsity is None:
            return self._release_select(x, state)
        if self.threshold is None:
            if self.keeps_all(x):
                return None
            scores = self.scores(x, state)
            if self.first:
                scores[..., 0] = float("inf")
            return self.best(scores, x)
        scores = self.scores(x, state)
        column = torch.arange(scores.shape[-1], device=scores.device)
        newest_block = column == newest(x, self.block_size)[0][:, None, None]
        return select_step(
            scores.masked_fill(newest_block, float("-inf")),
            k_block=self.block_size,
            k_len=x.k.shape[2],
            threshold=self.threshold,
            starts=x.starts,
        )

    def _release_select(self, x: StepInputs, state: _State) -> BlockIndex | None:
        """Return the blocks of the release: the best of all, the newest and the first."""
        if self.threshold is None and self.keeps_all(x):
            return None
        scores = self.scores(x, state)
        column, last = torch.arange(scores.shape[-1], device=scores.device), newest(x, self.block_size)[0][:, None, None]
        scores = scores.masked_fill(column > last, float("-inf"))
        if self.threshold is None:
            width = self.keep(scores.shape[-1])
            chosen = torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, scores.topk(width, dim=-1).indices, True)
            width += 2
        else:
            width, chosen = scores.shape[-1], scores.softmax(-1) > self.threshold
        selected = (chosen | (column == last) | (column == 0)) & (column <= last)
        return step_index(selected, min(width, scores.shape[-1]), k_block=self.block_size, k_len=x.k.shape[2])

    def scores(self, x: StepInputs, state: _State) -> Tensor:
        """Return the gate's logits [B,Hkv,Nk] float32."""
        gate, rope = self._gate(x)
        cos, sin = rope.table(x.k.shape[2], x.k.device)
        at = (x.lengths() - 1)[:, None, None]
        query = gate.queries(x.q, cos[at], sin[at])[:, :, 0]
        return step_scores(query, state.keys.values, scale=query.shape[-1] ** -0.5)

    def _gate(self, x: StepInputs) -> tuple[DecodeGate, Rope]:
        if not self.gates:
            raise ValueError(f"decode method seer_r has no weights: load {self.weights_name()} first (made by job=distill)")
        if x.rope is None:
            raise ValueError("decode method seer_r needs the model's RoPE: its gates read queries and keys from before it")
        if not 0 <= x.layer < len(self.gates):
            raise ValueError(f"layer {x.layer}: there are gates for layers 0 to {len(self.gates) - 1}")
        gate = self.gates[x.layer]
        gate.check(x.q, x.layer)
        return gate, x.rope

    def knobs(self) -> dict[str, int | float | str | bool | None]:
        return super().knobs() | {"threshold": self.threshold, "first": self.first}


if __name__ == "__main__":
    from methods.decode.parts.demo import demo

    demo("seer_r")
