"""A gate's way from pooled queries and keys to its blocks: a linear map and RoPE of both, their products, and a choice."""

from __future__ import annotations

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
    blocks = (-(-q_len // q_block), -(-k_len // k_block))
    (q_heads, q_dim), (k_heads, k_dim) = _shape(queries), _shape(keys)
    are_projected = queries.is_projected() and keys.is_projected()
    return (
        (q.shape[0], q.dtype) == (k.shape[0], k.dtype)
        and (q.shape[2], k.shape[2]) == blocks
        and q_len <= k_len
        and (q_heads % k_heads == 0 if are_projected else q_heads == k_heads)
        and q_dim == k_dim <= MOST_DIM
        and all(_maps(side) and side.pooled.device == q.device for side in (queries, keys))
    )


def _shape(side: Side) -> tuple[int, int]:
    """Return the heads and the elements of the projected vectors."""
    projected = side.pooled if side.weight is None else side.weight
    return (projected.shape[1], projected.shape[3]) if side.weight is None else (projected.shape[0], projected.shape[2])


def _maps(side: Side) -> bool:
    """Return whether pooled vectors, their map and their tables go together, as `project` would check."""
    weight, pooled, tables = side.weight, side.pooled, (side.cos, side.sin)
    fits = weight is None or (
        weight.ndim == 3 and weight.shape[1] == pooled.shape[3] and weight.shape[0] % pooled.shape[1] == 0
    )
    if side.cos is None or side.sin is None:
        return fits and tables == (None, None)
    return fits and all(
        table.ndim == 2 and len(table) == pooled.shape[2] and 2 * table.shape[1] <= _shape(side)[1]
        for table in (side.cos, side.sin)
    )


def _is_one_rule(rows: int, *, budget: tuple[int, ...] | None, threshold: float | None, mass: float | None) -> bool:
    """Return whether one rule is given, and is right."""
    if [rule is not None for rule in (budget, threshold, mass)].count(True) != 1:
        return False
    return (budget is None or len(budget) == rows) and (mass is None or 0 < mass <= 1)
