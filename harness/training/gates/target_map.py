"""What a gate is to predict: the true attention of a frozen model, pooled over the gate's blocks."""

from __future__ import annotations

from attention_kernels.block_map import block_map
from torch import Tensor

from methods.gates.gate import Gate
from methods.parts.base import Grid


def gate_grid(gate: Gate, q: Tensor, k: Tensor) -> Grid:
    """Return the blocks of the gate's map of these queries, for the functions of kernels/."""
    return Grid(q_block=gate.q_block, k_block=gate.block_size, q_len=q.shape[2], k_len=k.shape[2])


def true_map(q: Tensor, k: Tensor, gate: Gate, *, scale: float, pool: str, lse: Tensor | None = None) -> Tensor:
    """Return the true attention as the gate is to know it: pooled over its blocks and heads, [B,H,Mq,Nk] float32.

    lse: log-sum-exp of each query's scores [B,Hq,M], which saves computing it.
    """
    pooled = block_map(q, k, q_block=gate.q_block, k_block=gate.block_size, scale=scale, pool=pool, lse=lse)
    return gate.truth(pooled, pool, k.shape[2])


def target_map(q: Tensor, k: Tensor, gate: Gate, *, scale: float, pool: str, lse: Tensor | None = None) -> Tensor:
    """Return what the gate's softmax is to match: the pooled attention map [B,H,Mq,Nk] float32, rows summing to 1.

    lse: as for `true_map`.
    """
    truth = true_map(q, k, gate, scale=scale, pool=pool, lse=lse)
    return truth.div_(truth.sum(-1, keepdim=True).clamp(min=1e-9))
