"""Block-sparse attention in Triton under autograd: the forward pass keeps the log-sum-exp, two passes make the gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from attention_kernels.block_index import BlockIndex
from attention_kernels.block_sparse.backward.keys_kernel import key_gradients
from attention_kernels.block_sparse.backward.queries_kernel import query_gradient
from attention_kernels.block_sparse.backward.tuning import choose_key_tile, choose_query_tile
from attention_kernels.block_sparse.triton_kernel import run_tile, shared_heads
from attention_kernels.block_sparse.triton_tuning import choose_tile, describable
from attention_kernels.transposed_index import transpose_index


def gradients_triton(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, grad: Tensor, index: BlockIndex, *, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return dQ, dK and dV for the gradient `grad` [B, Hq, Q, D] of the output `out`, in the types of q, k and v.

    lse: the log-sum-exp of each query to the base 2, float32 [B, Hq, Q], contiguous. Deterministic, and never waits for the
    device.
    """
    q, k, v, out, grad = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v, out, grad))
    shape = {"dim": q.shape[-1], "q_block": index.q_block, "k_block": index.k_block}
    delta = torch.empty_like(lse)
    tile = choose_query_tile(
        q.device, q.dtype, **shape, shared=shared_heads(q, k, index), described=describable(k) and describable(v)
    )
    dq = query_gradient(q, k, v, out, lse, grad, index, delta, scale=scale, tile=tile)
    transposed = transpose_index(index, k.shape[1], kernel="triton")
    tile = choose_key_tile(q.device, q.dtype, **shape, described=describable(q) and describable(grad))
    dk, dv = key_gradients(q, k, v, lse, delta, grad, index, transposed, scale=scale, tile=tile)
    return dq, dk, dv


class TritonAttention(torch.autograd.Function):
    """Attention and its gradient by the kernels of this package."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, index: BlockIndex, scale: float) -> Tensor:
        """Return the output [B, Hq, Q, D], full rows included."""
        q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
        lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
        tile = choose_tile(
            q.device,
            q.dtype,
            dim=q.shape[-1],
            q_block=index.q_block,
            k_block=index.k_block,
            shared=shared_heads(q, k, index),
            described=describable(k) and describable(v),
        )
        out = run_tile(q, k, v, index, scale=scale, tile=tile, lse=lse)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.index, ctx.scale = index, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return dQ, dK, dV, and None for what has no gradient."""
        q, k, v, out, lse = ctx.saved_tensors
        return (*gradients_triton(q, k, v, out, lse, grad, ctx.index, scale=ctx.scale), None, None)


def block_sparse_triton_with_gradient(q: Tensor, k: Tensor, v: Tensor, index: BlockIndex, *, scale: float) -> Tensor:
    """Run `attention_kernels.block_sparse.block_sparse_attention` in Triton, full rows too, so that it has a gradient. Raises
    ValueError unless `scale` is positive."""
    return TritonAttention.apply(q, k, v, index, scale)  # type: ignore[no-any-return]
