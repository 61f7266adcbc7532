"""SeerAttention-R's gate: predicts, from the newest query and pooled keys, which key blocks matter at a step of decoding.

    S = softmax_j( RoPE_p(norm(W_q [q of the group's heads])) · RoPE_jB(norm(W_k [max; min; mean of k in block j])) / sqrt(d) )

(SeerAttention-R, arXiv 2506.08889.) One per KV head: W_q joins the query heads of a group into one vector. Queries and keys
are those from before RoPE; norm is RMSNorm with a weight; p is the query's position and jB that of a block's first token, in
training and in decoding alike (the released code turns a block that is completed while decoding by its last token's position).
j runs over the blocks before the query's own, which is always kept. Everything is float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from attention_kernels.pool import pool
from attention_kernels.rope import rotate, unrotate
from torch import Tensor, nn

from methods.gates.gate import POOLED_K, Gate
from methods.gates.weights import fill_gates
from methods.parts.rope_protocol import Rope

EPS = 1e-6
"""Of the RMSNorms."""


class DecodeGate(Gate):
    """SeerAttention-R's gate of one layer, with weights q [Hkv,G,D,D] and k [Hkv,3D,D], applied as x @ W, and norms [D]."""

    released: ClassVar[Mapping[str, str]] = {
        "q": "attngate_linear_q",
        "k": "attngate_linear_k",
        "q_norm": "attngate_qnorm",
        "k_norm": "attngate_knorm",
    }
    released_config: ClassVar[Mapping[str, Any]] = {
        "seerattn_q_head_pooling_type": "Qproj",
        "seerattn_k_seq_pooling_type": "Kmaxminavg",
        "seerattn_use_rope": True,
        "seerattn_use_qk_norm": True,
    }
    told_by_weights: ClassVar[frozenset[str]] = frozenset(released_config) - {"seerattn_use_rope"}

    def __init__(self, heads: int, kv_heads: int, head_dim: int, *, block_size: int) -> None:
        super().__init__(heads, head_dim, block_size=block_size, q_block=1)
        if heads % kv_heads:
            raise ValueError(f"{heads} query heads and {kv_heads} kv heads: the first must be a multiple of the second")
        self.kv_heads = kv_heads
        self.q = nn.Parameter(torch.empty(kv_heads, heads // kv_heads, head_dim, head_dim))
        self.k = nn.Parameter(torch.empty(kv_heads, len(POOLED_K) * head_dim, head_dim))
        self.q_norm = nn.Parameter(torch.empty(head_dim))
        self.k_norm = nn.Parameter(torch.empty(head_dim))
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the projections from normal(0, 0.02) and set the norms to 1."""
        with torch.no_grad():
            for weight in (self.q, self.k):
                weight.normal_(0.0, 0.02, generator=generator)
            self.q_norm.fill_(1.0)
            self.k_norm.fill_(1.0)

    def queries(self, q: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Return the gate's queries [B,Hkv,M,D] float32 of post-RoPE q [B,Hq,M,D].

        cos, sin: tables at the queries' positions, [M,R/2], or [B,1,1,R/2] where M is 1.
        """
        plain = unrotate(q, cos, sin).float().unflatten(1, (self.kv_heads, -1))  # [B,Hkv,G,M,D]
        joined = plain.transpose(2, 3).flatten(3) @ self.q.flatten(1, 2)
        return rotate(_norm(joined, self.q_norm), cos, sin)

    def keys(self, pooled: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Return the gate's keys [B,Hkv,M,D] float32 of pre-RoPE keys pooled three ways [B,Hkv,M,3D].

        cos, sin: tables at the blocks' first tokens.
        """
        return rotate(_norm(pooled.float() @ self.k, self.k_norm), cos, sin)

    def learns_from(self, q: Tensor) -> Tensor:
        """Return the second half of the queries, as SeerAttention-R's training takes them.

        Raises ValueError for a text of fewer than two blocks.
        """
        if q.shape[2] < 2 * self.block_size:
            raise ValueError(f"text of {q.shape[2]} tokens: a gate for decoding needs two blocks of {self.block_size} at least")
        return q[:, :, q.shape[2] // 2 :]

    def truth(self, attention: Tensor, pool: str, k_len: int) -> Tensor:
        """Return the target [B,Hkv,M,Nk] of a map of single queries [B,Hq,M,Nk], 0 from a query's own block on.

        pool: "max" takes the largest of the query heads of a group, else their mean.
        """
        grouped = attention.unflatten(1, (self.kv_heads, -1))
        joined = grouped.amax(2) if pool == "max" else grouped.mean(2)
        return joined.masked_fill_(self._own_or_later(attention.shape[2], k_len, attention.device), 0.0)

    def forward(self, q: Tensor, k: Tensor, rope: Rope) -> Tensor:
        """Return logits [B,Hkv,Q,Nk] float32 of post-RoPE q [B,Hq,Q,D] and k [B,Hkv,K,D], -inf from a query's own block on."""
        cos, sin = rope.table(k.shape[2], k.device)
        with torch.no_grad():
            pooled = pool(k, self.block_size, POOLED_K, cos=cos, sin=sin)
        keys = self.keys(pooled, cos[:: self.block_size], sin[:: self.block_size])
        first = k.shape[2] - q.shape[2]
        # in place: a map of single queries may be of gigabytes
        logits = (self.queries(q, cos[first:], sin[first:]) @ keys.mT).mul_(keys.shape[-1] ** -0.5)
        return logits.masked_fill_(self._own_or_later(q.shape[2], k.shape[2], q.device), float("-inf"))

    def _own_or_later(self, q_len: int, k_len: int, device: torch.device) -> Tensor:
        own_block = (torch.arange(q_len, device=device) + (k_len - q_len)) // self.block_size
        return torch.arange(-(-k_len // self.block_size), device=device) >= own_block[:, None]


def _norm(x: Tensor, weight: Tensor) -> Tensor:
    return torch.nn.functional.rms_norm(x, (x.shape[-1],), weight, EPS)


def load_decode_gates(
    state: Mapping[str, Tensor], *, layers: int, heads: int, kv_heads: int, head_dim: int, block_size: int
) -> list[DecodeGate]:
    """Return the gates of a model from their weights, in float32. Raises ValueError, one line, unless names and shapes fit."""
    gates = [DecodeGate(heads, kv_heads, head_dim, block_size=block_size) for _ in range(layers)]
    fill_gates(gates, state, f"the model has {layers} layers, {heads} query and {kv_heads} KV heads of {head_dim} elements")
    return gates
