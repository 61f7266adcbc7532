"""The gradient of block-sparse attention in plain PyTorch, for kernels that say nothing but their output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from attention_kernels.block_index import BlockIndex
from attention_kernels.block_sparse.reference import key_blocks, query_blocks, row_groups

Run = Callable[..., Tensor]


def gradients_reference(
    q: Tensor, k: Tensor, v: Tensor, grad: Tensor, index: BlockIndex, *, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return dQ, dK and dV for the gradient `grad` [B, Hq, Q, D] of the output, in the types of q, k and v.

    Every row is computed anew, rows of like length together, in float32, or float64 for float64 inputs; no tensor is larger
    than a few MiB or one of the inputs. On a CPU two runs give the same bits; on CUDA sums are added up as they come.
    """
    dim = q.shape[-1]
    accurate = torch.float64 if q.dtype == torch.float64 else torch.float32
    qb, gb = (query_blocks(x.to(accurate), index) for x in (q, grad))
    kb, vb = (key_blocks(x.to(accurate), index) for x in (k, v))
    dq, dk, dv = torch.zeros_like(qb), torch.zeros_like(kb), torch.zeros_like(vb)
    for group in row_groups(q, k, index, full=True):
        keys, values = (x.index_select(0, group.blocks).view(len(group.rows), -1, dim) for x in (kb, vb))
        queries, upstream = qb[group.rows], gb[group.rows]
        values = torch.where(group.real, values, 0)
        weights = torch.softmax(torch.bmm(queries, keys.mT).mul_(scale).masked_fill_(~group.visible, float("-inf")), -1)
        by_weights = torch.bmm(upstream, values.mT)
        by_scores = weights * (by_weights - (weights * by_weights).sum(-1, keepdim=True)) * scale
        dq[group.rows] = torch.bmm(by_scores, torch.where(group.real, keys, 0))
        dk.index_add_(0, group.blocks, torch.bmm(by_scores.mT, queries).view(len(group.blocks), -1, dim))
        dv.index_add_(0, group.blocks, torch.bmm(weights.mT, upstream).view(len(group.blocks), -1, dim))
    return tuple(_unblocked(blocks, like) for blocks, like in ((dq, q), (dk, k), (dv, v)))  # type: ignore[return-value]


def _unblocked(blocks: Tensor, like: Tensor) -> Tensor:
    """Return [B, H, N, D] of blocks that were filled up, in the type of `like`."""
    return blocks.view(*like.shape[:2], -1, like.shape[3])[:, :, : like.shape[2]].to(like.dtype)


class Recomputed(torch.autograd.Function):
    """Attention by a function that is not looked into, its gradient by `gradients_reference`."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, index: BlockIndex, scale: float, run: Run) -> Tensor:
        """Return run(q, k, v, index, scale=scale)."""
        ctx.save_for_backward(q, k, v)
        ctx.index, ctx.scale = index, scale
        return run(q, k, v, index, scale=scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return dQ, dK, dV, and None for what has no gradient."""
        q, k, v = ctx.saved_tensors
        return (*gradients_reference(q, k, v, grad, ctx.index, scale=ctx.scale), None, None, None)
