"""Attention over what a method chose, be it blocks, blocks and columns, or a rule for the kernel: the one place that tells them
apart."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attention_kernels import block_sparse, column_sparse
from attention_kernels.block_index import BlockIndex, causal_total
from attention_kernels.column_index import ColumnIndex
from attention_kernels.skip_softmax import SkipRule, resolve_skip, skip_softmax_attention

SparseIndex = BlockIndex | ColumnIndex
"""What a method selects, and what ran. Both have q_block, k_block, q_len, k_len, heads, tiles(), density(), token_density(),
row_keys()."""
Choice = SparseIndex | SkipRule
"""What a method hands on: an index, or a rule by which the kernel itself decides."""


def resolve_kernel(
    kernel: str,
    choice: Choice,
    *,
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    heads: int,
    grad: bool = False,
) -> str:
    """Return the name of the kernel that will run `choice` for `heads` query heads, by the rules of its kind:
    `attention_kernels.block_sparse`, or `attention_kernels.column_sparse` and `attention_kernels.skip_softmax`, which have
    fewer kernels. grad: an input requires a gradient; of these two only `reference` has a backward pass. Raises ValueError
    where it can't run, TypeError for what is no choice."""
    if not isinstance(choice, Choice):
        raise TypeError(
            f"select returned a {type(choice).__name__}: it must be a BlockIndex, a ColumnIndex, a SkipRule or None"
        )
    blocks = {"q_block": choice.q_block, "k_block": choice.k_block}
    if grad and not isinstance(choice, BlockIndex):
        if kernel not in ("auto", "reference"):
            raise ValueError(f"kernel={kernel} has no backward pass for single columns or skipped tiles; use kernel=reference")
        kernel = "reference"
    if isinstance(choice, SkipRule):
        return resolve_skip(kernel, device=device, dtype=dtype, head_dim=head_dim, **blocks)
    if isinstance(choice, ColumnIndex):
        return column_sparse.resolve_kernel(kernel, device=device, dtype=dtype, head_dim=head_dim, **blocks)
    shared = heads // choice.heads
    site: dict[str, Any] = {"device": device, "dtype": dtype, "head_dim": head_dim, **blocks}
    return block_sparse.resolve_kernel(kernel, **site, shared=shared, grad=grad)


def as_run(index: SparseIndex, kernel: str) -> SparseIndex:
    """Return the index that `kernel` (a resolved name) runs when it is given `index`: the same, or one of merged blocks. No
    host sync."""
    return index if isinstance(index, ColumnIndex) else block_sparse.as_run(index, kernel)


def full_row_kernel(index: SparseIndex, kernel: str, *, dtype: torch.dtype, head_dim: int) -> str | None:
    """Return the dense kernel that runs the full rows of `index` beside `kernel`, a resolved name; None without such rows."""
    if isinstance(index, ColumnIndex) or not index.full_rows:
        return None
    return block_sparse.full_row_kernel(kernel, device=index.counts.device, dtype=dtype, head_dim=head_dim)


def sparse_attention(q: Tensor, k: Tensor, v: Tensor, index: SparseIndex, *, scale: float, kernel: str = "auto") -> Tensor:
    """Compute causal attention of q [B, Hq, Q, D] to k, v [B, Hkv, K, D] over what `index` keeps. Returns [B, Hq, Q, D]."""
    if isinstance(index, ColumnIndex):
        return column_sparse.column_sparse_attention(q, k, v, index, scale=scale, kernel=kernel)
    return block_sparse.block_sparse_attention(q, k, v, index, scale=scale, kernel=kernel)


def attend(q: Tensor, k: Tensor, v: Tensor, choice: Choice, *, scale: float, kernel: str) -> tuple[Tensor, SparseIndex]:
    """Run `sparse_attention` over whatever a method chose, and the index that ran: the one given, one of merged blocks, or what
    the rule left. kernel: a resolved name. No host sync beside the kernel's own."""
    if isinstance(choice, SkipRule):
        return skip_softmax_attention(q, k, v, choice, scale=scale, kernel=kernel)
    ran = as_run(choice, kernel)  # merging blocks is part of the kernel's time
    return sparse_attention(q, k, v, ran, scale=scale, kernel=kernel), ran


def flop(q: Tensor, choice: Choice, ran: SparseIndex) -> float:
    """Return the FLOP of one call over q [B, Hq, Q, D]: 2·D for each pair of a tile in each product. Tiles on the diagonal and
    tiles of columns count whole; where a rule decides in the kernel, Q·K of every causal tile is computed. Waits for the
    device."""
    batch, heads, _, dim = q.shape
    second = float(ran.tiles().sum()) * (heads // ran.heads)
    every = batch * heads * causal_total(ran.q_len, ran.k_len, ran.q_block, ran.k_block)
    first = every if isinstance(choice, SkipRule) else second
    return 2.0 * dim * (first + second) * ran.q_block * ran.k_block
