"""The three patterns that MInference gives a head, with their budgets in tokens and blocks, and how a layer of them selects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import floor
from typing import Any, Literal, get_args

import torch
from attention_kernels.block_index import BlockIndex, causal_blocks
from attention_kernels.column_index import ColumnIndex
from attention_kernels.diagonal_blocks import diagonal_blocks
from attention_kernels.last_queries import vertical_slash
from attention_kernels.open_columns import with_columns
from attention_kernels.pool import pool
from attention_kernels.selection import select_from_pooled
from torch import Tensor

from methods.parts.base import Grid, LayerInputs
from methods.parts.release_tiles import with_tiles
from methods.parts.whole_numbers import whole

Kind = Literal["vertical_slash", "a_shape", "block_sparse"]
LAST_Q = 64
"""Queries whose attention says where columns and diagonals are."""
FORCED_COLUMNS, FORCED_DIAGONALS = 30, 100
"""The first columns and the nearest diagonals that vertical-slash heads take before all others."""
LEAST_COLUMNS, LEAST_DIAGONALS = 30, 50
"""Floors of a vertical-slash head's budgets, in the release."""


@dataclass(frozen=True)
class Pattern:
    """A head's pattern and its two budgets.

    vertical_slash: `first` columns and `second` diagonals, those that the last queries attend to most. a_shape: `first` sink
    tokens and a window of `second` tokens. block_sparse: the `first` best blocks of each row; `second` is 0.
    """

    kind: Kind
    first: int
    second: int = 0

    def scaled(self, factor: float, up: float = 0.5) -> Pattern:
        """Return the pattern with its budgets times a factor, never below one diagonal, a window of one token, or one block.

        up: the fraction from 1 - up on is rounded up. Where each head has another one, in [0, 1), their mean budget is the
        factor's even where all have the same few blocks.
        """
        least = (1, 0) if self.kind == "block_sparse" else (0, 1)
        first, second = (max(low, floor(n * factor + up)) for low, n in zip(least, (self.first, self.second), strict=True))
        return replace(self, first=first, second=second)

    def floored(self) -> Pattern:
        """Return the pattern with the release's floors: at least 30 columns and 50 diagonals."""
        if self.kind != "vertical_slash":
            return self
        return replace(self, first=max(self.first, LEAST_COLUMNS), second=max(self.second, LEAST_DIAGONALS))


FALLBACK = Pattern("vertical_slash", 1000, 6096)
"""What MInference's release gives heads that it knows nothing of, and those whose search block-sparse won."""


def by_release_rules(pattern: Pattern) -> Pattern:
    """Return the pattern that the release runs in place of one that its search chose."""
    return {"block_sparse": FALLBACK, "a_shape": replace(pattern, kind="vertical_slash")}.get(pattern.kind, pattern)


def parse_patterns(data: Any, *, layers: int, heads: int) -> tuple[tuple[Pattern, ...], ...]:
    """Return the patterns [layer][head] of JSON's [[[kind, first, second], …], …].

    Raises ValueError, one line, where they are no patterns, or not those of so many layers and heads.
    """
    try:
        patterns = tuple(tuple(Pattern(kind, whole(a), whole(b)) for kind, a, b in layer) for layer in data)
    except (TypeError, ValueError):
        raise ValueError("patterns must be lists of [kind, first, second], a list for each layer, in whole numbers") from None
    if len(patterns) != layers or any(len(layer) != heads for layer in patterns):
        sizes = sorted({len(layer) for layer in patterns})
        raise ValueError(f"patterns of {len(patterns)} layers of {', '.join(map(str, sizes))} heads, not {layers} of {heads}")
    for pattern in (p for layer in patterns for p in layer):
        if pattern.kind not in get_args(Kind):
            raise ValueError(f"pattern {pattern.kind} is not known; it must be one of {', '.join(get_args(Kind))}")
        if min(pattern.first, pattern.second) < 0 or pattern.first + pattern.second < 1:
            raise ValueError(f"pattern {pattern.kind} with budgets {pattern.first} and {pattern.second}: they must be positive")
    return patterns


def select_patterns(
    x: LayerInputs, grid: Grid, patterns: Sequence[Pattern], *, forced: float = 1.0, tiles: bool = False
) -> BlockIndex | ColumnIndex:
    """Return what each query head keeps by its own pattern; single columns come beside blocks where a head is vertical-slash.

    grid: square blocks. forced: share of the forced columns and diagonals. tiles: whether diagonals are covered by tiles that
    begin at any key, as in the release (`methods.parts.release_tiles`), and not by whole blocks. Heads of one kind are selected
    together. Never waits for the device but the first time that a shape is met. Raises ValueError for another kind of pattern.
    """
    by_kind: dict[Kind, list[int]] = {}
    for head, pattern in enumerate(patterns):
        by_kind.setdefault(pattern.kind, []).append(head)
    parts: list[tuple[list[int], BlockIndex]] = []
    columns: tuple[Tensor, Tensor] | None = None
    tiled: ColumnIndex | None = None
    for kind, heads in by_kind.items():
        kind_patterns = tuple(patterns[head] for head in heads)
        if kind == "vertical_slash":
            diagonals, places, counts = _vertical_slash(x, grid, tuple(heads), kind_patterns, forced)
            columns = (places, counts)
            if tiles:
                tiled = with_tiles(diagonals, places, counts, grid)
                parts.append((heads, tiled.blocks))
                continue
            most = max(min(p.second, grid["k_len"]) for p in kind_patterns)
            blocks = diagonal_blocks(diagonals, block=grid["k_block"], q_len=grid["q_len"], k_len=grid["k_len"], most=most)
            parts.append((heads, blocks))
        elif kind == "a_shape":
            parts.append((heads, _a_shape(x, grid, kind_patterns)))
        elif kind == "block_sparse":
            parts.append((heads, _block_sparse(x, grid, tuple(heads), kind_patterns)))
        else:
            raise ValueError(f"pattern {kind} is not known; it must be one of {', '.join(get_args(Kind))}")
    blocks = parts[0][1] if len(parts) == 1 else merge_heads(parts, len(patterns))
    if columns is None:
        return blocks
    at = _tensor(tuple(by_kind["vertical_slash"]), x.q.device)
    if tiled is not None:
        return tiled if len(parts) == 1 else _among_others(tiled, blocks, at)
    if len(parts) == 1:
        return with_columns(blocks, *columns)
    shape = (x.q.shape[0], len(patterns), columns[0].shape[-1])
    places = torch.full(shape, grid["k_len"], dtype=torch.int32, device=x.q.device)
    counts = torch.zeros(shape[:2], dtype=torch.int32, device=x.q.device)
    return with_columns(blocks, places.index_copy_(1, at, columns[0]), counts.index_copy_(1, at, columns[1]))


def _among_others(tiled: ColumnIndex, blocks: BlockIndex, at: Tensor) -> ColumnIndex:
    """Return the index of all heads from their blocks and the single keys of the heads `at`; the others have none."""

    def spread(part: Tensor) -> Tensor:
        every = torch.zeros(len(part), blocks.heads, *part.shape[2:], dtype=part.dtype, device=part.device)
        return every.index_copy_(1, at, part)

    return replace(
        tiled,
        blocks=blocks,
        columns=tiled.columns[:, :1].expand(-1, blocks.heads, -1).contiguous(),  # all keys in every head
        column_counts=tiled.column_counts[:, :1].expand(-1, blocks.heads).contiguous(),
        open=spread(tiled.open),
        open_counts=spread(tiled.open_counts),
        reach=spread(tiled.reach),
    )


def _vertical_slash(
    x: LayerInputs, grid: Grid, heads: tuple[int, ...], patterns: tuple[Pattern, ...], forced: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the best diagonals bool [B,H,K] by distance, the best columns int32 [B,H,V] and their counts [B,H], of H heads."""
    vertical, slash = vertical_slash(x.q, x.k, scale=x.scale, last_q=LAST_Q)
    if len(heads) < x.q.shape[1]:
        at = _tensor(heads, x.q.device)
        vertical, slash = vertical.index_select(1, at), slash.index_select(1, at)
    first = round(FORCED_COLUMNS * forced), max(1, round(FORCED_DIAGONALS * forced))
    return best_of_last(vertical, slash, patterns, first)


def best_of_last(
    vertical: Tensor, slash: Tensor, patterns: Sequence[Pattern], first: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the diagonals of each head, bool [B,H,K] by distance, its columns int32 [B,H,V], ascending and K past their counts
    int32 [B,H].

    vertical, slash: what the last queries give to columns and diagonals, [B,H,K] each, as `vertical_slash` returns them. first:
    how many of the first columns and of the nearest diagonals come before all others.
    """
    slash, k_len = slash.flip(-1), vertical.shape[-1]  # by distance
    for scores, forced in zip((vertical, slash), first, strict=True):
        scores[..., :forced] = torch.arange(k_len + 1, 1, -1, device=scores.device)[:forced]  # above all others, the first most
    v_budgets, s_budgets = tuple(min(p.first, k_len) for p in patterns), tuple(min(p.second, k_len) for p in patterns)
    v, s = (_tensor(budgets, vertical.device).expand(len(vertical), -1) for budgets in (v_budgets, s_budgets))
    near = best_places(slash, s, max(s_budgets))
    diagonals = torch.zeros(*slash.shape[:2], k_len + 1, dtype=torch.bool, device=slash.device).scatter_(-1, near, True)
    columns = best_places(vertical, v, max(v_budgets)).sort(-1).values.to(torch.int32)
    return diagonals[..., :k_len], columns, v.to(torch.int32)


def best_places(scores: Tensor, counts: Tensor, most: int) -> Tensor:
    """Return int64 [...,most], places of the `counts` [...] largest of each row of scores [...,N], best first, padded with N.

    most: the largest of counts. A top-k is much less work than sorting a long row.
    """
    order = scores.topk(most, dim=-1).indices
    return order.masked_fill_(torch.arange(most, device=order.device) >= counts[..., None], scores.shape[-1])


def _a_shape(x: LayerInputs, grid: Grid, patterns: tuple[Pattern, ...]) -> BlockIndex:
    """Return the sinks and the window of each head, in whole blocks."""
    blocks = tuple((-(-p.first // grid["k_block"]), -(-p.second // grid["k_block"])) for p in patterns)
    index, batch = _a_shape_index(blocks, device=x.q.device, **grid), x.q.shape[0]
    counts, indices = (x.expand(batch, *x.shape[1:]).contiguous() for x in (index.counts, index.indices))
    return replace(index, counts=counts, indices=indices)


@lru_cache(maxsize=32)
def _a_shape_index(
    blocks: tuple[tuple[int, int], ...], q_block: int, k_block: int, q_len: int, k_len: int, device: torch.device
) -> BlockIndex:
    """Return the index of a batch of one, from the blocks of sinks and window of each head.

    It depends on no token, so it is kept for the next call: read it only.
    """
    last = causal_blocks(q_len, k_len, q_block, k_block) - 1
    cols = torch.arange(-(-k_len // k_block))
    first, recent = (torch.tensor(n)[:, None, None] for n in zip(*blocks, strict=True))
    with torch.inference_mode(False):  # a tensor made in inference mode could not take part in training later
        mask = (cols < first) | (cols > last[:, None] - recent)
        return BlockIndex.from_mask(mask[None], q_block=q_block, k_block=k_block, q_len=q_len, k_len=k_len).to(device)


def _block_sparse(x: LayerInputs, grid: Grid, heads: tuple[int, ...], patterns: tuple[Pattern, ...]) -> BlockIndex:
    """Return the best blocks by the product of mean queries and mean keys, heads of one budget at a time."""
    group = x.q.shape[1] // x.k.shape[1]
    pooled_q = pool(x.q, grid["q_block"], ("mean",)).index_select(1, _tensor(heads, x.q.device))
    means = x.block_vectors(grid["k_block"], lambda k, _: pool(k, grid["k_block"], ("mean",)), "means")
    pooled_k = means.index_select(1, _tensor(tuple(h // group for h in heads), x.q.device))
    parts = []
    for blocks in sorted({p.first for p in patterns}):
        members = [i for i, p in enumerate(patterns) if p.first == blocks]
        at = _tensor(tuple(members), x.q.device)
        budget = _row_blocks(blocks, **grid)
        q, k = pooled_q.index_select(1, at), pooled_k.index_select(1, at)
        parts.append((members, select_from_pooled(q, k, scale=x.scale, budget=budget, **grid)))
    return parts[0][1] if len(parts) == 1 else merge_heads(parts, len(heads))


@lru_cache(maxsize=64)
def _row_blocks(blocks: int, q_block: int, k_block: int, q_len: int, k_len: int) -> tuple[int, ...]:
    """Return the budget of each row: so many blocks, or its causal blocks where these are fewer."""
    return tuple(causal_blocks(q_len, k_len, q_block, k_block).clamp(max=blocks).tolist())


@lru_cache(maxsize=1024)
def _tensor(numbers: tuple[int, ...], device: torch.device) -> Tensor:
    """Return int64 numbers on the device; they are kept for the next call, since copying waits: read them only."""
    with torch.inference_mode(False):  # a tensor made in inference mode could not take part in training later
        return torch.tensor(numbers, dtype=torch.int64, device=device)


def merge_heads(parts: Sequence[tuple[Sequence[int], BlockIndex]], heads: int) -> BlockIndex:
    """Return the index of `heads` heads from parts, each the numbers of some heads and their index."""
    parts = [(members, part.with_all_lists()) for members, part in parts]
    first = parts[0][1]
    batch, _, rows = first.counts.shape
    width = max(part.indices.shape[-1] for _, part in parts)
    counts = torch.empty(batch, heads, rows, dtype=torch.int32, device=first.counts.device)
    indices = torch.zeros(batch, heads, rows, width, dtype=torch.int32, device=first.counts.device)
    for members, part in parts:
        at = _tensor(tuple(members), counts.device)
        counts.index_copy_(1, at, part.counts)
        indices[..., : part.indices.shape[-1]].index_copy_(1, at, part.indices)
    return replace(first, counts=counts, indices=indices)
