"""The random tensors of one length and batch, and the calls of attention that are timed on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from attention_kernels.block_index import BlockIndex
from attention_kernels.block_sparse import as_run, block_sparse_attention
from attention_kernels.decode import sparse_decode
from attention_kernels.dense import dense_attention, resolve_dense
from torch import Tensor

from harness.measure.kernel_speed.cases import DECODE, TRAINING, Shape
from harness.measure.kernel_speed.correctness import gradient_error, relative_error

PASSES = 3.5
"""FLOP of a forward and a backward pass ÷ those of the forward pass, by the custom of counting: seven products to two. What a
kernel computes anew is not counted."""


@dataclass(frozen=True)
class Work:
    """The inputs of a kernel: q [B,Hq,Q,D] and k, v [B,Hkv,K,D] from a normal distribution, and in training the gradient of its
    output, grad [B,Hq,Q,D].

    Their values don't change which work is done, so not the time either (zeros would: they draw less power, and the clock
    rises); real indices do, see `indices`.
    """

    phase: str
    q: Tensor
    k: Tensor
    v: Tensor
    scale: float
    grad: Tensor | None = None

    @staticmethod
    def draw(phase: str, shape: Shape, batch: int, length: int, *, dtype: torch.dtype, device: torch.device, seed: int) -> Work:
        """Draw the tensors; the same for the same seed. K is the length, Q too at prefill and 1 at decode."""
        generator = torch.Generator(device).manual_seed(seed)

        def normal(heads: int, tokens: int) -> Tensor:
            size = (batch, heads, tokens, shape.head_dim)
            return torch.empty(size, dtype=dtype, device=device).normal_(generator=generator)

        q = normal(shape.heads, 1 if phase == DECODE else length)
        k, v = normal(shape.kv_heads, length), normal(shape.kv_heads, length)
        grad = normal(shape.heads, length) if phase == TRAINING else None
        return Work(phase, q, k, v, shape.head_dim**-0.5, grad)

    def dense(self, kernel: str) -> Callable[[], Any]:
        """Return a call of dense attention. Raises ValueError where the kernel can't run on the device."""
        q = self.q
        resolve_dense(kernel, device=q.device, dtype=q.dtype, head_dim=q.shape[-1], grad=self.phase == TRAINING)
        return self._call(lambda q, k, v: dense_attention(q, k, v, scale=self.scale, kernel=kernel), f"dense kernel {kernel}")

    def sparse(self, kernel: str, index: BlockIndex) -> Callable[[], Any]:
        """Return a call of attention over the blocks of an index."""
        run = sparse_decode if self.phase == DECODE else block_sparse_attention
        return self._call(lambda q, k, v: run(q, k, v, index, scale=self.scale, kernel=kernel), f"kernel {kernel}")

    def _call(self, attend: Callable[..., Tensor], name: str) -> Callable[[], Any]:
        """Return a call of `attend` that returns its output; in training the output, dQ, dK and dV."""
        grad = self.grad
        if grad is None:
            return lambda: attend(self.q, self.k, self.v)
        with torch.inference_mode(False):
            leaves = [x.detach().requires_grad_() for x in (self.q, self.k, self.v)]

        def both_passes() -> tuple[Tensor, ...]:
            with torch.inference_mode(False), torch.enable_grad():
                out = attend(*leaves)
                if out.grad_fn is None:
                    raise ValueError(f"{name} has no backward pass")
                return (out.detach(), *torch.autograd.grad(out, leaves, grad))

        return both_passes

    def error(self, index: BlockIndex, result: Any) -> float:
        """Return how far what a call returned is from exact attention over an index, and its gradients in training."""
        if self.grad is None:
            return relative_error(self.q, self.k, self.v, index, result, scale=self.scale)
        return gradient_error(self.q, self.k, self.v, self.grad, index, result, scale=self.scale)

    def ran(self, kernel: str, index: BlockIndex) -> BlockIndex:
        """Return the index that the kernel attends to when it is given `index`: another one where it merges blocks."""
        return index if self.phase == DECODE else as_run(index, kernel)

    def flop(self, index: BlockIndex | None) -> float:
        """Return the FLOP of the attention, two products of 2·D a query-key pair: of every causal pair, or of the kept blocks,
        which count whole on the diagonal too (as harness.measure.latency.attention counts them); PASSES times as many in
        training."""
        batch, heads, tokens, dim = self.q.shape
        passes = PASSES if self.phase == TRAINING else 1.0
        if index is None:
            offset = self.k.shape[2] - tokens
            return 4.0 * passes * dim * batch * heads * (tokens * offset + tokens * (tokens + 1) / 2)
        blocks = float(index.counts.sum(dtype=torch.int64)) * (heads // index.counts.shape[1])
        return 4.0 * passes * dim * blocks * min(index.q_block, tokens) * index.k_block

    def kv_bytes(self, index: BlockIndex | None) -> float | None:
        """Return the bytes of keys and values that a decode step must read.

        None but at decode, and where heads of one KV head read different blocks.
        """
        if self.phase != DECODE:
            return None
        token_bytes = 2 * self.k.shape[3] * self.k.element_size()
        if index is None:
            return float(self.k[..., 0].numel() * token_bytes)
        if index.counts.shape[1] != self.k.shape[1]:
            return None
        return float(index.counts.sum(dtype=torch.int64)) * index.k_block * token_bytes
