"""Intervals by bootstrap over documents: tokens of one document are not independent, documents are."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

RESAMPLES = 10_000
"""How often the documents are drawn."""


def ratio_interval(sums: Sequence[float], counts: Sequence[float], *, seed: int = 0) -> tuple[float, float] | None:
    """Return the 95 % percentile interval of sum(sums) ÷ sum(counts), drawing whole documents with replacement (Efron 1979).

    None for a single document: there is nothing to draw. With few documents it is too narrow, as every bootstrap is.
    Raises ValueError where sums and counts differ in number or are empty.
    """
    if not sums or len(sums) != len(counts):
        raise ValueError(f"{len(sums)} sums and {len(counts)} counts: one each, at least one")
    if len(sums) == 1:
        return None
    rng = np.random.default_rng(seed)
    ratios = []
    for _ in range(10):  # in tenths, so that thousands of documents need little memory
        drawn = rng.integers(0, len(sums), (RESAMPLES // 10, len(sums)))
        ratios.append(np.asarray(sums)[drawn].sum(1) / np.asarray(counts)[drawn].sum(1))
    low, high = np.percentile(np.concatenate(ratios), (2.5, 97.5))
    return float(low), float(high)


def perplexity(loss: float) -> float:
    """Return the perplexity of a mean loss in nats a token, infinite where a float holds no more."""
    return math.exp(loss) if loss < 700 else math.inf


def perplexity_bounds(bounds: tuple[float, float] | None) -> tuple[float | None, float | None]:
    """Return the bounds of a perplexity from those of a mean loss, None twice where there are none."""
    return (None, None) if bounds is None else (perplexity(bounds[0]), perplexity(bounds[1]))
