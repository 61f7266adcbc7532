"""SeerAttention's AttnGate: a small learned layer that predicts, from pooled queries and keys, which blocks matter.

    S = softmax_j( RoPE_iB(mean of q in block i) · RoPE_jB(W_h [max; min; mean of k in block j]) / sqrt(d) ),  j <= i

(SeerAttention, arXiv 2410.13276, section 3, in the form of the released prefill gates: pooling and projection before
RoPE, RoPE at the position of each block's first token with the model's own frequencies, one gate per query head, no
projection of the queries.) Everything is float32; with q_linear=True the pooled queries are projected too, as in the
paper's formula. The paper's ablations are options: other poolings (its Fig 2), and no RoPE at the blocks (its Fig 4).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from attention_kernels.block_index import causal_blocks
from attention_kernels.gated_selection import Side
from attention_kernels.pool import Pool, pool, pool_pair
from attention_kernels.project import project
from torch import Tensor, nn

from methods.gates.gate import Gate
from methods.gates.pooling import USUAL_POOLING, ways_of
from methods.gates.weights import fill_gates
from methods.parts.rope_protocol import Rope

DRAWN_SPREAD = 15.0
"""How many times the spread of the weights that training begins with drawn ones have. With 1 the probabilities of a row are
alike, and a threshold keeps early rows whole and nothing of late ones."""


class AttnGate(Gate):
    """The AttnGate of one layer, with weights k [Hq,nD,D] for keys pooled in n ways (3 as usual) and, with q_linear or queries
    pooled in several ways, q [Hq,mD,D] for m ways, both applied as x @ W per head.

    pooling: the ways, as `ways_of` reads them. block_rope: whether pooled vectors get RoPE at the positions of their blocks.
    Raises ValueError for a pooling that is none.
    """

    released: ClassVar[Mapping[str, str]] = {"k": "mask_linear_k", "q": "mask_linear_q"}
    released_config: ClassVar[Mapping[str, Any]] = {"seerattn_gate_type": "Qavg_Kmaxminavg"}
    options: ClassVar[Mapping[str, Any]] = {"q_linear": False, "pooling": USUAL_POOLING, "block_rope": True}
    options_in_names: ClassVar[frozenset[str]] = frozenset({"q_linear"})
    q: nn.Parameter | None

    def __init__(
        self,
        heads: int,
        kv_heads: int,
        head_dim: int,
        *,
        block_size: int,
        q_linear: bool = False,
        pooling: str = USUAL_POOLING,
        block_rope: bool = True,
    ) -> None:
        super().__init__(heads, head_dim, block_size=block_size, q_block=block_size)
        if heads % kv_heads:
            raise ValueError(f"{heads} query heads and {kv_heads} kv heads: the first must be a multiple of the second")
        self.kv_heads = kv_heads
        self.q_ways, self.k_ways = ways_of(pooling)
        self.block_rope = block_rope
        self.k = nn.Parameter(torch.empty(heads, len(self.k_ways) * head_dim, head_dim))
        is_q_projected = q_linear or len(self.q_ways) > 1
        self.q = nn.Parameter(torch.empty(heads, len(self.q_ways) * head_dim, head_dim)) if is_q_projected else None
        self.reset_parameters()

    @classmethod
    def variant(cls, knobs: Mapping[str, Any]) -> str | None:
        """Return the pooling and, without RoPE at the blocks, norope, where they are not as usual. Raises ValueError for a
        pooling that is none."""
        unusual = cls.unusual(knobs)
        ways_of(unusual.get("pooling", USUAL_POOLING))
        parts = [unusual["pooling"]] if "pooling" in unusual else []
        return "_".join([*parts, *(["norope"] if "block_rope" in unusual else [])]) or None

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the weights from normal(0, 0.02), as SeerAttention's release does."""
        with torch.no_grad():
            for weight in self.parameters():
                weight.normal_(0.0, 0.02, generator=generator)

    def draw(self, generator: torch.Generator | None = None) -> None:
        """Draw weights, of `DRAWN_SPREAD` times the spread that training begins with: there all probabilities are alike."""
        self.reset_parameters(generator)
        with torch.no_grad():
            self.k.mul_(DRAWN_SPREAD)

    def forward(self, q: Tensor, k: Tensor, rope: Rope) -> Tensor:
        """Return logits [B,Hq,Mq,Nk] float32 of post-RoPE q [B,Hq,Q,D] and k [B,Hkv,K,D], -inf above the causal diagonal."""
        with torch.no_grad():
            pooled_q, pooled_k = self.pool(q, k, rope)
        return self.score(pooled_q, pooled_k, rope, q_len=q.shape[2], k_len=k.shape[2])

    def pool(self, q: Tensor, k: Tensor, rope: Rope) -> tuple[Tensor, Tensor]:
        """Return pooled q [B,Hq,Mq,mD] and k [B,Hkv,Nk,nD], float32, from before RoPE, of post-RoPE q and k."""
        cos, sin = rope.table(k.shape[2], k.device)
        return pool_pair(q, k, self.block_size, self.q_ways, self.k_ways, cos=cos, sin=sin)

    def sides(self, q: Tensor, k: Tensor, rope: Rope) -> tuple[Side, Side]:
        """Return queries and keys of a whole prompt, pooled, with what `project` does with them, for `select_gated`."""
        cos, sin = rope.table(k.shape[2], k.device)
        first, block = k.shape[2] - q.shape[2], self.block_size
        pooled_q, pooled_k = pool_pair(q, k, block, self.q_ways, self.k_ways, cos=cos, sin=sin)
        if not self.block_rope:
            return Side(pooled_q, self.q), Side(pooled_k, self.k)
        of_keys = cos[::block], sin[::block]
        of_queries = (cos[first::block], sin[first::block]) if first else of_keys
        return Side(pooled_q, self.q, *of_queries), Side(pooled_k, self.k, *of_keys)

    def queries(self, q: Tensor, rope: Rope, *, first: int) -> Tensor:
        """Return the projected queries [B,Hq,Mq,D], as `project` does, of post-RoPE q [B,Hq,Q,D] from position `first` on."""
        return self._project(self._pool(q, self.q_ways, rope, first), self.q, rope, first, q.shape[2], "auto")

    def keys(self, k: Tensor, rope: Rope, *, first: int) -> Tensor:
        """Return the projected keys [B,Hq,Nk,D], as `project` does, of post-RoPE k [B,Hkv,K,D] from position `first` on, where
        a block begins."""
        return self._project(self._pool(k, self.k_ways, rope, first), self.k, rope, first, k.shape[2], "auto")

    def _pool(self, x: Tensor, how: tuple[Pool, ...], rope: Rope, first: int) -> Tensor:
        """Return x [B,H,P,D] from position `first` on pooled from before RoPE."""
        cos, sin = (table[first:] for table in rope.table(first + x.shape[2], x.device))
        return pool(x, self.block_size, how, cos=cos, sin=sin)

    def _project(self, pooled: Tensor, weight: Tensor | None, rope: Rope, first: int, tokens: int, kernel: str) -> Tensor:
        """Return what was pooled of `tokens` tokens from position `first` on, projected, with RoPE at the first token of each
        block where the gate has it."""
        if not self.block_rope:
            return project(pooled, weight, kernel=kernel)
        cos, sin = (table[first :: self.block_size] for table in rope.table(first + tokens, pooled.device))
        return project(pooled, weight, cos=cos, sin=sin, kernel=kernel)

    def project(
        self, pooled_q: Tensor, pooled_k: Tensor, rope: Rope, *, q_len: int, k_len: int, kernel: str = "auto"
    ) -> tuple[Tensor, Tensor]:
        """Return the queries [B,Hq,Mq,D] and keys [B,Hq,Nk,D] whose products are √D × the logits, from the results of `pool`.

        They are projected, with RoPE at the first token of each block where the gate has it. Differentiable with
        kernel="reference".
        """
        keys = self._project(pooled_k, self.k, rope, 0, k_len, kernel)
        return self._project(pooled_q, self.q, rope, k_len - q_len, q_len, kernel), keys

    def score(self, pooled_q: Tensor, pooled_k: Tensor, rope: Rope, *, q_len: int, k_len: int) -> Tensor:
        """Return logits [B,Hq,Mq,Nk] float32, -inf above the causal diagonal, of the results of `pool`. Differentiable."""
        block, device = self.block_size, pooled_q.device
        queries, keys = self.project(pooled_q, pooled_k, rope, q_len=q_len, k_len=k_len, kernel="reference")
        causal = causal_blocks(q_len, k_len, block, block, device=device)
        future = torch.arange(keys.shape[2], device=device) >= causal[:, None]
        # in place: a map may be of half a gigabyte
        return (queries @ keys.transpose(-1, -2)).mul_(keys.shape[-1] ** -0.5).masked_fill_(future, float("-inf"))


def load_gates(
    state: Mapping[str, Tensor],
    *,
    layers: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    block_size: int,
    **options: Any,
) -> list[AttnGate]:
    """Return the gates of a model from their weights, in float32. options: of AttnGate, those that are not as usual.

    Raises ValueError, one line, unless names and shapes fit.
    """
    gates = [AttnGate(heads, kv_heads, head_dim, block_size=block_size, **options) for _ in range(layers)]
    model = f"the model has {layers} layers, {heads} query heads of {head_dim} elements"
    others = "".join(f", {name} is {value}" for name, value in options.items() if name != "q_linear")
    fill_gates(gates, state, f"{model}, and q_linear is {options.get('q_linear', False)}{others}")
    return gates
