"""What block-sparse attention must be, as the formula reads, in float64; and ways to make inputs for it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from attention_kernels.block_index import BlockIndex
from hypothesis import strategies as st
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """Shapes of one comparison; `index_heads` is Hq, or Hkv where a group shares one index."""

    batch: int
    heads: int
    kv_heads: int
    q_len: int
    k_len: int
    dim: int
    q_block: int
    k_block: int
    index_heads: int

    @property
    def grid(self) -> dict[str, int]:
        return {"q_block": self.q_block, "k_block": self.k_block, "q_len": self.q_len, "k_len": self.k_len}

    def tensors(self, dtype: torch.dtype, device: str, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        sizes = ((self.heads, self.q_len), (self.kv_heads, self.k_len), (self.kv_heads, self.k_len))
        q, k, v = (torch.randn(self.batch, h, n, self.dim, generator=generator).to(device, dtype) for h, n in sizes)
        return q, k, v

    def index(self, device: str, share: float = 0.4, seed: int = 1) -> BlockIndex:
        generator = torch.Generator().manual_seed(seed)
        rows, cols = -(-self.q_len // self.q_block), -(-self.k_len // self.k_block)
        mask = torch.rand(self.batch, self.index_heads, rows, cols, generator=generator) < share
        return BlockIndex.from_mask(mask.to(device), **self.grid)


CASES = [
    Case(2, 4, 2, 100, 100, 64, 16, 16, 4),
    Case(1, 4, 1, 70, 131, 64, 32, 16, 1),  # a chunk of a prompt, misaligned; one index for the group
    Case(1, 2, 2, 129, 129, 128, 64, 64, 2),
    Case(1, 2, 1, 95, 200, 32, 16, 32, 2),
    Case(2, 6, 2, 33, 161, 96, 32, 32, 2),
    Case(1, 2, 1, 200, 200, 64, 128, 64, 1),
    Case(1, 1, 1, 1, 40, 64, 16, 16, 1),
    Case(1, 2, 1, 150, 150, 256, 128, 128, 2),
    Case(1, 7, 1, 37, 70, 64, 16, 16, 7),
    Case(1, 9, 3, 50, 61, 64, 32, 32, 3),
]
"""Odd lengths, GQA (groups of three and seven too), shared indices, chunked prefill, unequal blocks, every head dim."""


COARSE = [
    Case(1, 4, 2, 300, 300, 128, 128, 128, 4),
    Case(2, 4, 2, 200, 431, 64, 128, 128, 4),  # a chunk, misaligned
    Case(1, 4, 1, 257, 257, 64, 64, 64, 4),
    Case(1, 8, 2, 333, 333, 128, 64, 64, 2),  # one index for four heads
    Case(2, 8, 2, 100, 517, 64, 64, 64, 2),
    Case(1, 4, 2, 300, 300, 64, 128, 64, 2),
    Case(1, 2, 2, 1, 300, 128, 128, 128, 2),
    Case(1, 2, 2, 130, 130, 128, 64, 128, 2),
    Case(1, 14, 2, 150, 277, 64, 128, 128, 14),
    Case(1, 9, 3, 130, 130, 64, 64, 64, 9),
    Case(1, 7, 1, 200, 200, 64, 128, 64, 1),
]
"""The same for kernels that take blocks of 64 and 128 only."""


@st.composite
def cases(
    draw: st.DrawFn,
    blocks: tuple[int, ...] = (16, 32, 64),
    dims: tuple[int, ...] = (32, 64),
    longest: int = 150,
) -> Case:
    """Any lengths, also of chunks, any GQA ratio and batch, an index for each query head or for each KV head."""
    kv_heads, group, q_len = draw(st.integers(1, 2)), draw(st.integers(1, 4)), draw(st.integers(1, longest))
    return Case(
        draw(st.integers(1, 2)),
        kv_heads * group,
        kv_heads,
        q_len,
        q_len + draw(st.integers(0, longest)),
        draw(st.sampled_from(dims)),
        draw(st.sampled_from(blocks)),
        draw(st.sampled_from(blocks)),
        draw(st.sampled_from([kv_heads, kv_heads * group])),
    )


def token_mask(index: BlockIndex, heads: int) -> Tensor:
    """bool [B, Hq, Q, K]: which key each query sees."""
    mask = index.to_mask().cpu()
    mask = mask.repeat_interleave(heads // mask.shape[1], 1)
    mask = mask.repeat_interleave(index.q_block, 2).repeat_interleave(index.k_block, 3)
    causal = torch.ones(index.q_len, index.k_len, dtype=torch.bool).tril(index.k_len - index.q_len)
    return mask[:, :, : index.q_len, : index.k_len] & causal


def probabilities(q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
    """float64 [B, Hq, Q, K]."""
    keys = k.cpu().double().repeat_interleave(q.shape[1] // k.shape[1], 1)
    scores = q.cpu().double() @ keys.mT * q.shape[-1] ** -0.5
    return torch.softmax(scores.masked_fill(~mask, float("-inf")), -1)


def attention(q: Tensor, k: Tensor, v: Tensor, index: BlockIndex) -> Tensor:
    """float64 [B, Hq, Q, D]."""
    values = v.cpu().double().repeat_interleave(q.shape[1] // k.shape[1], 1)
    return probabilities(q, k, token_mask(index, q.shape[1])) @ values


def gradients(q: Tensor, k: Tensor, v: Tensor, index: BlockIndex | Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    """dQ, dK and dV of dense masked attention by autograd, float64, for the gradient of its output. index: or the mask, bool
    [B, Hq, Q, K]."""
    mask = token_mask(index, q.shape[1]) if isinstance(index, BlockIndex) else index
    leaves = [x.detach().cpu().double().requires_grad_() for x in (q, k, v)]
    keys, values = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in leaves[1:])
    scores = leaves[0] @ keys.mT * q.shape[-1] ** -0.5
    weights = torch.softmax(scores.masked_fill(~mask, float("-inf")), -1)
    return torch.autograd.grad(weights @ values, leaves, grad.cpu().double())


def error(result: Tensor, true: Tensor) -> float:
    """‖found − true‖ ÷ ‖true‖; a NaN anywhere is infinitely wrong."""
    value = float((result.cpu().double() - true).norm() / true.norm())
    return value if value == value else float("inf")
