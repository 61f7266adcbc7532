"""Choosing key blocks: from block scores, or straight from pooled queries and keys without storing a score.

Ties go to the earlier block everywhere, so that every kernel and device makes the same choice from the same scores.
"""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor

from attention_kernels.backends import resolve_backend
from attention_kernels.block_index import BlockIndex
from attention_kernels.selection.budget import kept_counts, row_budget
from attention_kernels.selection.reference import select_from_pooled_reference, select_mass, select_threshold, select_topk
from attention_kernels.selection.step import select_step, step_index

__all__ = ["row_budget", "select_from_pooled", "select_mass", "select_step", "select_threshold", "select_topk", "step_index"]

Combine = Literal["mean", "max"]


def select_from_pooled(
    q: Tensor,
    k: Tensor,
    *,
    scale: float,
    q_block: int,
    k_block: int,
    q_len: int,
    k_len: int,
    budget: tuple[int, ...] | None = None,
    threshold: float | None = None,
    mass: float | None = None,
    share: int = 1,
    combine: Combine = "mean",
    max_blocks: int | None = None,
    full_rows: int = 0,
    kernel: str = "auto",
) -> BlockIndex:
    """Choose the key blocks that score highest, scores being q [B, Hq, Mq, D] · k [B, Hk, Nk, D] × scale in float32.

    One vector stands for each block; query head h reads key head h // (Hq // Hk). Give one rule:
      budget: blocks of each row, Mq numbers; the index is as wide as the largest.
      threshold: blocks whose share of the row's softmax over its causal blocks is above it.
      mass: the fewest blocks, best first, whose share of that softmax reaches it.
    The diagonal is always kept, and counts inside budget and mass. share: so many consecutive query heads get one index,
    from the `combine` (mean or max) of their scores, and the index has Hq / share heads. full_rows: so many rows at the end, or
    all where these are fewer, keep every causal block whatever the rule; they have no list (`BlockIndex.full_rows`).

    Threshold and mass don't know how wide the index must be. With the triton kernel, which never waits for the device,
    it is `max_blocks` wide, and rows that would keep more keep their best; None stands for Nk, which takes
    4·B·H·Mq·Nk bytes (512 MiB at 128k tokens, blocks of 64 and 32 heads). The reference waits and makes it fit.
    NaN scores rank last; under threshold and mass a row with one keeps its diagonal only.
    """
    _check(q, k, q_block=q_block, k_block=k_block, q_len=q_len, k_len=k_len, share=share, combine=combine)
    shape = (q_len, k_len, q_block, k_block)
    if (budget is not None) + (threshold is not None) + (mass is not None) != 1:
        raise ValueError("give one rule: budget, threshold or mass")
    if budget is not None and len(budget) != q.shape[2]:
        raise ValueError(f"budget has {len(budget)} rows, the queries have {q.shape[2]}")
    if full_rows < 0:
        raise ValueError(f"full_rows={full_rows}: must be at least 0")
    full_rows = min(full_rows, q.shape[2])
    if mass is not None and not 0 < mass <= 1:
        raise ValueError(f"mass={mass}: must be above 0 and at most 1")
    if max_blocks is not None:
        needed = -(-q_block // k_block) + 1
        if budget is not None:
            raise ValueError("max_blocks is for threshold and mass: a budget says itself how wide the index is")
        if max_blocks < needed:
            raise ValueError(f"max_blocks={max_blocks}: must be at least {needed}, room for the diagonal")
    if resolve_backend(kernel, q) == "triton":
        from attention_kernels.selection.triton_kernel import select_triton  # imported late: needs triton

        counts = None if budget is None else kept_counts(budget, shape, q.device, full_rows)
        return select_triton(
            q,
            k,
            shape,
            scale=scale,
            counts=counts,
            threshold=threshold,
            mass=mass,
            share=share,
            combine=combine,
            max_blocks=max_blocks,
            full_rows=full_rows,
        )
    return select_from_pooled_reference(
        q,
        k,
        shape,
        scale=scale,
        budget=budget,
        threshold=threshold,
        mass=mass,
        share=share,
        combine=combine,
        max_blocks=max_blocks,
        full_rows=full_rows,
    )


def _check(q: Tensor, k: Tensor, *, q_block: int, k_block: int, q_len: int, k_len: int, share: int, combine: str) -> None:
    rows, cols = -(-q_len // q_block), -(-k_len // k_block)
    if q.ndim != 4 or k.ndim != 4 or q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3] or q.dtype != k.dtype:
        raise ValueError(
            f"pooled q {tuple(q.shape)} {q.dtype} and k {tuple(k.shape)} {k.dtype}: expected [B,Hq,Mq,D] and [B,Hk,Nk,D]"
        )
    if (q.shape[2], k.shape[2]) != (rows, cols):
        raise ValueError(
            f"q and k have {q.shape[2]} and {k.shape[2]} blocks; the lengths {q_len} and {k_len} make {rows}, {cols}"
        )
    if q.shape[1] % k.shape[1]:
        raise ValueError(f"{q.shape[1]} query heads are no multiple of {k.shape[1]} key heads")
    if q_len > k_len:
        raise ValueError(f"{q_len} queries for {k_len} keys: queries are the last tokens of the keys")
    if share < 1 or q.shape[1] % share:
        raise ValueError(f"share={share}: must divide the {q.shape[1]} query heads")
    if combine not in get_args(Combine):
        raise ValueError(f"combine={combine}: must be one of {', '.join(get_args(Combine))}")
