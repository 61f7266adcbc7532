"""The random tensors of one length and batch, and the calls of attention that are timed on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from attention_kernels.block_index import BlockIndex
from attention_kernels.block_sparse import as_run, block_sparse_attention
from attention_kernels.decode import sparse_decode
from attention_kernels.dense import dense_attention, resolve_dense
from torch import Tensor

from harness.measure.kernel_speed.cases import Shape


@dataclass(frozen=True)
class Work:
    """The inputs of a kernel: q [B,Hq,Q,D] and k, v [B,Hkv,K,D] from a normal distribution.

    Their values don't change which work is done, so not the time either (zeros would: they draw less power, and the clock
    rises); real indices do, see `indices`.
    """

    phase: str
    q: Tensor
    k: Tensor
    v: Tensor
    scale: float

    @staticmethod
    def draw(phase: str, shape: Shape, batch: int, length: int, *, dtype: torch.dtype, device: torch.device, seed: int) -> Work:
        """Draw the tensors; the same for the same seed. K is the length, Q too at prefill and 1 at decode."""
        generator = torch.Generator(device).manual_seed(seed)

        def normal(heads: int, tokens: int) -> Tensor:
            size = (batch, heads, tokens, shape.head_dim)
            return torch.empty(size, dtype=dtype, device=device).normal_(generator=generator)

        q = normal(shape.heads, length if phase == "prefill" else 1)
        return Work(phase, q, normal(shape.kv_heads, length), normal(shape.kv_heads, length), shape.head_dim**-0.5)

    def dense(self, kernel: str) -> Callable[[], Tensor]:
        """Return a call of dense attention. Raises ValueError where the kernel can't run on the device."""
        q, k, v = self.q, self.k, self.v
        resolve_dense(kernel, device=q.device, dtype=q.dtype, head_dim=q.shape[-1])
        return lambda: dense_attention(q, k, v, scale=self.scale, kernel=kernel)

    def sparse(self, kernel: str, index: BlockIndex) -> Callable[[], Tensor]:
        """Return a call of attention over the blocks of an index."""
        run = block_sparse_attention if self.phase == "prefill" else sparse_decode
        return lambda: run(self.q, self.k, self.v, index, scale=self.scale, kernel=kernel)

    def ran(self, kernel: str, index: BlockIndex) -> BlockIndex:
        """Return the index that the kernel attends to when it is given `index`: another one where it merges blocks."""
        return as_run(index, kernel) if self.phase == "prefill" else index

    def flop(self, index: BlockIndex | None) -> float:
        """Return the FLOP of the attention, two products of 2·D a query-key pair: of every causal pair, or of the kept blocks,
        which count whole on the diagonal too (as harness.measure.latency.attention counts them)."""
        batch, heads, tokens, dim = self.q.shape
        if index is None:
            offset = self.k.shape[2] - tokens
            return 4.0 * dim * batch * heads * (tokens * offset + tokens * (tokens + 1) / 2)
        blocks = float(index.counts.sum(dtype=torch.int64)) * (heads // index.counts.shape[1])
        return 4.0 * dim * blocks * min(index.q_block, tokens) * index.k_block

    def kv_bytes(self, index: BlockIndex | None) -> float | None:
        """Return the bytes of keys and values that a decode step must read.

        None at prefill, and where heads of one KV head read different blocks.
        """
        if self.phase == "prefill":
            return None
        token_bytes = 2 * self.k.shape[3] * self.k.element_size()
        if index is None:
            return float(self.k[..., 0].numel() * token_bytes)
        if index.counts.shape[1] != self.k.shape[1]:
            return None
        return float(index.counts.sum(dtype=torch.int64)) * index.k_block * token_bytes
