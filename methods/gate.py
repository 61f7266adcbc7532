"""SeerAttention's AttnGate: a small learned layer that predicts, from pooled queries and keys, which blocks matter.

    S = softmax_j( RoPE_iB(mean of q in block i) · RoPE_jB(W_h [max; min; mean of k in block j]) / sqrt(d) ),  j <= i

(SeerAttention, arXiv 2410.13276, section 3, in the form of the released prefill gates: pooling and projection before
RoPE, RoPE at the position of each block's first token with the model's own frequencies, one gate per query head, no
projection of the queries.) Everything is float32; with q_linear=True the pooled queries are projected too, as in the
paper's formula.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from kernels.block_index import causal_blocks
from methods.base import Rope
from methods.pooling import Pool, pool_blocks
from methods.rope import rope_apply, rope_undo

POOLED_K: tuple[Pool, ...] = ("max", "min", "mean")
"""How keys are pooled, in the order in which the pooled vectors are concatenated."""

CHUNK_ELEMENTS = 1 << 24
"""Elements whose RoPE is undone at once: bounds the float32 copies of long prompts at 64 MiB each."""


class AttnGate(nn.Module):
    """The gate of one layer. Weights k [Hq,3D,D] and, with q_linear, q [Hq,D,D], both applied as x @ W per head."""

    q: nn.Parameter | None

    def __init__(self, heads: int, kv_heads: int, head_dim: int, *, block_size: int, q_linear: bool = False) -> None:
        super().__init__()
        if heads % kv_heads:
            raise ValueError(f"{heads} query heads and {kv_heads} kv heads: the first must be a multiple of the second")
        self.block_size = block_size
        self.kv_heads = kv_heads
        self.k = nn.Parameter(torch.empty(heads, len(POOLED_K) * head_dim, head_dim))
        self.q = nn.Parameter(torch.empty(heads, head_dim, head_dim)) if q_linear else None
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the weights from normal(0, 0.02), as SeerAttention does."""
        with torch.no_grad():
            for weight in self.parameters():
                weight.normal_(0.0, 0.02, generator=generator)

    def forward(self, q: Tensor, k: Tensor, rope: Rope) -> Tensor:
        """Post-RoPE q [B,Hq,Q,D] and k [B,Hkv,K,D] -> logits [B,Hq,Mq,Nk] float32, -inf above the causal diagonal."""
        with torch.no_grad():
            pooled_q, pooled_k = self.pool(q, k, rope)
        return self.score(pooled_q, pooled_k, rope, q_len=q.shape[2], k_len=k.shape[2])

    def pool(self, q: Tensor, k: Tensor, rope: Rope) -> tuple[Tensor, Tensor]:
        """Post-RoPE q, k -> pre-RoPE q pooled [B,Hq,Mq,D] and k pooled three ways [B,Hkv,Nk,3D], float32."""
        offset = k.shape[2] - q.shape[2]
        return _pool(q, self.block_size, ("mean",), rope, offset), _pool(k, self.block_size, POOLED_K, rope, 0)

    def score(self, pooled_q: Tensor, pooled_k: Tensor, rope: Rope, *, q_len: int, k_len: int) -> Tensor:
        """What `pool` returned -> logits [B,Hq,Mq,Nk] float32, -inf above the causal diagonal. Differentiable."""
        block, device = self.block_size, pooled_q.device
        if self.q is not None:
            pooled_q = pooled_q @ self.q
        # query head h uses kv head h // group: the pooled keys of a group meet the weights of each of its heads
        weight = self.k.unflatten(0, (self.kv_heads, -1))  # [Hkv,g,3D,D]
        keys = (pooled_k.unsqueeze(2) @ weight).flatten(1, 2)  # [B,Hq,Nk,D]
        q_starts = torch.arange(k_len - q_len, k_len, block, device=device)
        k_starts = torch.arange(0, k_len, block, device=device)
        queries = rope_apply(pooled_q, *rope.cos_sin(q_starts))
        keys = rope_apply(keys, *rope.cos_sin(k_starts))
        logits = queries @ keys.transpose(-1, -2) * keys.shape[-1] ** -0.5
        causal = causal_blocks(q_len, k_len, block, block, device=device)
        future = torch.arange(keys.shape[2], device=device) >= causal[:, None]
        return logits.masked_fill(future, float("-inf"))


def _pool(x: Tensor, block: int, how: Sequence[Pool], rope: Rope, first: int) -> Tensor:
    """Undo RoPE of x [B,H,P,D], whose first token is at position `first`, and pool: [B,H,ceil(P/block),len(how)*D]."""
    step = max(1, CHUNK_ELEMENTS // (x[:, :, 0].numel() * block)) * block
    parts = []
    for start in range(0, x.shape[2], step):
        chunk = x[:, :, start : start + step]
        positions = torch.arange(first + start, first + start + chunk.shape[2], device=x.device)
        plain = rope_undo(chunk, *rope.cos_sin(positions))
        parts.append(torch.cat([pool_blocks(plain, block, way) for way in how], dim=-1))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


# -- weights ---------------------------------------------------------------------------------------------------------


def gate_state(gates: Sequence[AttnGate]) -> dict[str, Tensor]:
    """The weights of all layers, by the names they have in a file: layers.{i}.gate.k and, with q_linear, .gate.q."""
    return {
        f"layers.{layer}.gate.{name}": weight.detach()
        for layer, gate in enumerate(gates)
        for name, weight in gate.named_parameters()
    }


def load_gates(
    state: Mapping[str, Tensor],
    *,
    layers: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    block_size: int,
    q_linear: bool = False,
) -> list[AttnGate]:
    """The gates of a model from their weights, in float32. Raises ValueError, one line, unless names and shapes fit."""
    gates = [AttnGate(heads, kv_heads, head_dim, block_size=block_size, q_linear=q_linear) for _ in range(layers)]
    wanted = gate_state(gates)
    model = f"the model has {layers} layers, {heads} query heads of {head_dim} elements"
    missing, unknown = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    if missing or unknown:
        which = f"lack {missing[0]}" if missing else f"have {unknown[0]} that it has no place for"
        raise ValueError(f"the gate weights {which}: {model}, and q_linear is {q_linear}; they are another model's")
    for name, weight in wanted.items():
        if state[name].shape != weight.shape:
            raise ValueError(
                f"gate weight {name} has shape {list(state[name].shape)}, not {list(weight.shape)}: {model}; "
                "it was made for another model"
            )
    with torch.no_grad():
        for name, weight in wanted.items():
            weight.copy_(state[name])
    return [gate.requires_grad_(False) for gate in gates]
