"""How many key blocks each query block may keep, for a density of the whole call or by SeerAttention's nz_ratio."""

from __future__ import annotations

import math
from functools import lru_cache

from attention_kernels.block_index import causal_blocks, causal_total, diagonal_start
from attention_kernels.selection import row_budget


def rows_of_last_queries(last: int, q_len: int, q_block: int) -> int:
    """Return the number of query blocks that hold one of the last `last` queries."""
    return -(-q_len // q_block) - max(0, q_len - last) // q_block if last > 0 else 0


def mean_row_budget(sparsity: float, q_len: int, k_len: int, q_block: int, k_block: int) -> float:
    """Return the key blocks that the average query block keeps at a sparsity."""
    return (1 - sparsity) * causal_total(q_len, k_len, q_block, k_block) / -(-q_len // q_block)


@lru_cache(maxsize=64)
def budget_with_full_rows(
    density: float,
    last_rows: int,
    q_len: int,
    k_len: int,
    q_block: int,
    k_block: int,
    diagonal: bool = False,
    whole: bool = False,
) -> tuple[int, tuple[int, ...]]:
    """Return how many of the last `last_rows` rows can be kept in full, and the blocks that each row may keep then: Mq numbers.

    Full rows take at most half of the budget, which is density × all causal blocks; with `diagonal` the other rows' own
    blocks count in that half. whole: whether all of them are kept in full, whatever they cost. The remaining budget is spread
    over the other rows, a constant share of each, so that the density of the whole call is as asked.
    """
    shape = (q_len, k_len, q_block, k_block)
    causal = causal_blocks(*shape).tolist()
    own = (causal_blocks(*shape) - diagonal_start(*shape)).tolist() if diagonal else [0] * len(causal)
    total, full, spent, others = sum(causal), 0, 0, sum(own)
    while full < min(last_rows, len(causal)):
        row = len(causal) - full - 1
        others -= own[row]
        if spent + causal[row] + others > density * total / 2 and not whole:
            break
        full, spent = full + 1, spent + causal[row]
    share = max(0.0, density * total - spent) / max(1, total - spent)
    narrow = row_budget(share, *shape)[: len(causal) - full]
    return full, (*narrow, *causal[len(narrow) :])


@lru_cache(maxsize=64)
def even_budget(blocks: int, full: int, q_len: int, k_len: int, q_block: int, k_block: int) -> tuple[int, ...]:
    """Return a budget of as many blocks in each row, or its causal blocks where these are fewer, and of all causal blocks in
    the last `full` rows: Mq numbers."""
    causal = causal_blocks(q_len, k_len, q_block, k_block).tolist()
    narrow = len(causal) - full
    return (*(min(blocks, seen) for seen in causal[:narrow]), *causal[narrow:])


@lru_cache(maxsize=64)
def nz_ratio_budget(nz_ratio: float, q_len: int, k_len: int, q_block: int, k_block: int) -> tuple[int, ...]:
    """Return SeerAttention's budget of each row, Mq numbers: the same in all, or its causal blocks where these are fewer."""
    blocks = max(1, int((1 - math.sqrt(1 - nz_ratio)) * -(-k_len // k_block)))
    return tuple(causal_blocks(q_len, k_len, q_block, k_block).clamp(max=blocks).tolist())


@lru_cache(maxsize=64)
def nz_ratio_budget_with_full_rows(
    nz_ratio: float, full: int, q_len: int, k_len: int, q_block: int, k_block: int, *, pays: bool
) -> tuple[int, ...]:
    """Return `nz_ratio_budget` with the last `full` rows, 1 or more, whole: Mq numbers.

    pays: whether the other rows pay for the full ones. They then keep the most blocks each with which all rows together are
    at most `nz_ratio` of the causal blocks; otherwise what they would keep without full rows.
    """
    shape = (q_len, k_len, q_block, k_block)
    causal = causal_blocks(*shape).tolist()
    if not pays:
        return (*nz_ratio_budget(nz_ratio, *shape)[:-full], *causal[-full:])
    budget, others = nz_ratio * sum(causal) - sum(causal[-full:]), causal[:-full]
    most = next((n for n in range(1, max(causal)) if sum(min(n + 1, c) for c in others) > budget), max(causal))
    return (*(min(most, c) for c in others), *causal[-full:])
