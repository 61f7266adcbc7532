"""Spans that are linear in the prompt's length, one a query head: read from a file, and made into blocks of every row."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from attention_kernels.block_index import BlockIndex, causal_blocks, causal_total, diagonal_start
from torch import Tensor

from methods.parts.base import Grid

LEAST_BLOCKS = 2
"""The least span of a head, in blocks: the release's 128 tokens."""
HALVINGS = 60
"""Of the range of the factor that brings spans to a density: more would not change a float64."""

Numbers = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class SpanRules:
    """The rule of every head: its span, in tokens, is alpha + beta · N on a prompt of N tokens.

    alphas: tokens. betas: shares of the prompt, 0 to 1. Both are [layer][query head]; a layer of a sliding window has none.
    """

    alphas: Numbers
    betas: Numbers

    def spans(self, tokens: int, least: int) -> tuple[tuple[int, ...], ...]:
        """Return the span of each head on a prompt of so many tokens, [layer][head]: at least `least`, at most all of them."""
        return tuple(
            tuple(span(alpha, beta, tokens, least) for alpha, beta in zip(*layer, strict=True))
            for layer in zip(self.alphas, self.betas, strict=True)
        )


def span(alpha: float, beta: float, tokens: int, least: int) -> int:
    """Return alpha + beta · tokens in whole tokens, at least `least`, at most `tokens` (and that where both can't be)."""
    return min(tokens, max(least, math.floor(alpha + beta * tokens)))


def parse_rules(data: Mapping[str, Any], *, layers: int, heads: int) -> SpanRules:
    """Return the rules of JSON's {"alphas": [[…], …], "betas": [[…], …]}.

    Raises ValueError, one line, where they are no numbers, or not those of so many layers and query heads.
    """
    numbers = []
    for name in ("alphas", "betas"):
        try:
            rows = tuple(tuple(_number(value) for value in layer) for layer in data[name])
        except (KeyError, TypeError, ValueError, OverflowError):
            raise ValueError(f'it has no "{name}": a list of finite numbers for each layer, one for each query head') from None
        if len(rows) != layers or not any(rows) or any(len(layer) not in (0, heads) for layer in rows):
            sizes = ", ".join(map(str, sorted({len(layer) for layer in rows})))
            raise ValueError(f"its {name} are of {len(rows)} layers of {sizes} query heads, not {layers} of {heads}")
        numbers.append(rows)
    alphas, betas = numbers
    if any(len(a) != len(b) for a, b in zip(alphas, betas, strict=True)):
        raise ValueError("its alphas and betas are of different layers")
    if not all(0 <= beta <= 1 for layer in betas for beta in layer):
        raise ValueError("its betas must be shares of the prompt, 0 to 1")
    return SpanRules(alphas, betas)


def _number(value: Any) -> float:
    """Return a finite number of JSON. Raises ValueError for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is no finite number")
    return float(value)


# -- from spans to blocks --------------------------------------------------------------------------------------------


def density_of(spans: tuple[int, ...], grid: Grid) -> float:
    """Return the density of heads with these spans, in tokens, each rounded up to whole blocks."""
    blocks = torch.tensor([-(-tokens // grid["k_block"]) for tokens in spans], dtype=torch.float64)
    return float(_row_blocks(blocks, grid).sum()) / (len(spans) * causal_total(**grid))


def whole_counts(spans: tuple[int, ...], grid: Grid) -> Tensor:
    """Return the blocks that each row keeps where spans, in tokens, are rounded up to whole blocks, int32 [heads, Mq]."""
    blocks = torch.tensor([-(-tokens // grid["k_block"]) for tokens in spans], dtype=torch.float64)
    return _row_blocks(blocks, grid).to(torch.int32)


def counts_at_density(spans: tuple[int, ...], density: float, grid: Grid, *, least: int = 0) -> Tensor:
    """Return the blocks that each row keeps where all spans are multiplied by the one factor that gives a density.

    int32 [heads, Mq], over all heads as near to the density as a block allows. A scaled span is no whole number of blocks, so
    some rows of a head keep one block more than others: fractions are carried on from row to row and from head to head. Every
    row keeps its own blocks, and `least` blocks where it sees so many: a density below theirs is out of reach.
    """
    blocks = torch.tensor(spans, dtype=torch.float64) / grid["k_block"]
    distinct, times = blocks.unique(return_counts=True)
    target = density * len(spans) * causal_total(**grid)
    low, high = 0.0, float(causal_blocks(**grid).max() / distinct.min())
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        total = float((_row_blocks(distinct * middle, grid, least).sum(-1) * times).sum())
        low, high = (middle, high) if total < target else (low, middle)
    rows = _row_blocks(blocks * high, grid, least)
    ends = (rows.flatten().cumsum(0) + 0.5).floor()
    return ends.diff(prepend=ends.new_zeros(1)).to(torch.int32).view(rows.shape)


def _row_blocks(blocks: Tensor, grid: Grid, least: int = 0) -> Tensor:
    """Return the blocks that each row has of spans [heads] in blocks, whole or not, float64 [heads, Mq].

    They are its own and `least` at least, and all that it sees at most.
    """
    causal = causal_blocks(**grid)
    own = (causal - diagonal_start(**grid)).clamp(min=least)
    return blocks[:, None].clamp(min=own.double()).minimum(causal.double())


def span_index(counts: Tensor, sinks: int, batch: int, grid: Grid, *, width: int) -> BlockIndex:
    """Return the index whose rows keep their own blocks, then the first `sinks` blocks, then the latest, so many in all.

    counts: int32 [heads, Mq], at least a row's own blocks and at most all that it sees, on the device of the index. width: the
    largest of counts. Nothing waits for the device.
    """
    causal, own_first = _row_ends(device=counts.device, **grid)
    own = causal - own_first
    first = (counts - own).clamp(min=0).minimum(own_first.clamp(max=sinks))  # sinks that a row keeps, beside its own blocks
    place = torch.arange(width, dtype=torch.int32, device=counts.device)
    late = (causal - counts)[..., None] + place  # the latest end at the row's last block
    indices = torch.where(place < first[..., None], place, late).masked_fill_(place >= counts[..., None], 0)
    shape = (batch, *indices.shape)
    return BlockIndex(counts.expand(shape[:-1]).contiguous(), indices.expand(shape).contiguous(), **grid)


@lru_cache(maxsize=64)
def _row_ends(q_len: int, k_len: int, q_block: int, k_block: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the causal blocks and the first of its own blocks of every row, int32 [Mq] each. Kept: read only."""
    shape = (q_len, k_len, q_block, k_block)
    with torch.inference_mode(False):  # a tensor made in inference mode could not take part in training later
        return causal_blocks(*shape).to(device, torch.int32), diagonal_start(*shape).to(device, torch.int32)
