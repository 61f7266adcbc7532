"""A gate's way from pooled queries and keys to its blocks: a linear map and RoPE of both, their products, and a choice."""

from __future__ import annotations

from torch import Tensor

from attention_kernels.backends import resolve_backend
from attention_kernels.block_index import BlockIndex
from attention_kernels.gated_selection.side import Side
from attention_kernels.project import project
from attention_kernels.selection import select_from_pooled
from attention_kernels.selection.budget import kept_counts

__all__ = ["MOST_COLUMNS", "MOST_DIM", "Side", "select_gated"]

MOST_COLUMNS = 128
"""Key blocks of a short prompt: one program holds whole rows of scores, of some columns each thread."""
MOST_DIM = 128


def select_gated(
    queries: Side,
    keys: Side,
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
    full_rows: int = 0,
    kernel: str = "auto",
) -> BlockIndex:
    """Return `select_from_pooled` of what `project` makes of both sides: rules, ties and width are its own.

    With Triton, up to MOST_COLUMNS key blocks and share=1, these are two launches, or one where there is nothing to project, in
    place of four or more: at 8k tokens launches cost as much as attention does. Raises ValueError as those functions do.
    """
    grid = {"q_block": q_block, "k_block": k_block, "q_len": q_len, "k_len": k_len}
    is_right = _is_one_rule(queries.pooled.shape[2], budget=budget, threshold=threshold, mass=mass)
    if share == 1 and is_right and _is_short(queries, keys, kernel, **grid):
        from attention_kernels.gated_selection.triton_kernel import select_gated_triton  # imported late: needs triton

        full_rows = min(full_rows, queries.pooled.shape[2])
        shape = (q_len, k_len, q_block, k_block)
        counts = None if budget is None else kept_counts(budget, shape, queries.pooled.device, full_rows)
        return select_gated_triton(
            queries, keys, shape, scale=scale, counts=counts, threshold=threshold, mass=mass, full_rows=full_rows
        )
    q, k = (
        side.pooled if side.is_projected() else project(side.pooled, side.weight, cos=side.cos, sin=side.sin, kernel=kernel)
        for side in (queries, keys)
    )
    return select_from_pooled(
        q,
        k,
        scale=scale,
        q_block=q_block,
        k_block=k_block,
        q_len=q_len,
        k_len=k_len,
        budget=budget,
        threshold=threshold,
        mass=mass,
        share=share,
        full_rows=full_rows,
        kernel=kernel,
    )


def _is_short(queries: Side, keys: Side, kernel: str, *, q_block: int, k_block: int, q_len: int, k_len: int) -> bool:
    """Return whether the launches for short prompts can do it. What does not fit together goes the other way, which says so."""
    q, k = queries.pooled, keys.pooled
    if resolve_backend(kernel, q) != "triton" or q.ndim != 4 or k.ndim != 4 or k.shape[2] > MOST_COLUMNS:
        return False
    (batch, _, rows, _), (k_batch, _, cols, _) = q.shape, k.shape
    if (rows, cols) != (-(-q_len // q_block), -(-k_len // k_block)) or q_len > k_len:
        return False
    (q_heads, dim), (k_heads, k_dim) = _projected(queries), _projected(keys)
    are_projected = queries.is_projected() and keys.is_projected()
    fits = batch == k_batch and q.dtype == k.dtype and q.device == k.device and dim == k_dim <= MOST_DIM
    heads_fit = q_heads % k_heads == 0 if are_projected else q_heads == k_heads
    return fits and heads_fit and _maps(queries, dim) and _maps(keys, dim)


def _projected(side: Side) -> tuple[int, int]:
    """Return the heads and the elements of the projected vectors."""
    shape = side.pooled.shape if side.weight is None else side.weight.shape
    return (shape[1], shape[3]) if side.weight is None else (shape[0], shape[-1])


def _maps(side: Side, dim: int) -> bool:
    """Return whether pooled vectors, their map and their tables go together, as `project` would check. dim: elements of what
    comes out."""
    (_, heads, blocks, inner), weight, cos, sin = side.pooled.shape, side.weight, side.cos, side.sin
    if weight is not None and (weight.ndim != 3 or weight.shape[1] != inner or weight.shape[0] % heads):
        return False
    if cos is None or sin is None:
        return cos is sin
    return _is_table(cos, blocks, dim) and _is_table(sin, blocks, dim)


def _is_table(table: Tensor, blocks: int, dim: int) -> bool:
    """Return whether a table [M, R/2] has a row for each block, and turns no more elements than there are."""
    return table.ndim == 2 and table.shape[0] == blocks and 2 * table.shape[1] <= dim


def _is_one_rule(rows: int, *, budget: tuple[int, ...] | None, threshold: float | None, mass: float | None) -> bool:
    """Return whether one rule is given, and is right."""
    if [rule is not None for rule in (budget, threshold, mass)].count(True) != 1:
        return False
    return (budget is None or len(budget) == rows) and (mass is None or 0 < mass <= 1)
