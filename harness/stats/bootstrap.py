"""Intervals by bootstrap over documents: tokens of one document are not independent, documents are."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

RESAMPLES = 10_000


def interval(sums: Sequence[float], counts: Sequence[float], *, seed: int = 0) -> tuple[float, float] | None:
    """95 % percentile interval of sum(sums) ÷ sum(counts), drawing whole documents with replacement (Efron 1979).

    None for a single document: there is nothing to draw. With few documents it is too narrow, as every bootstrap is.
    Raises ValueError where sums and counts differ in number or are empty.
    """
    if not sums or len(sums) != len(counts):
        raise ValueError(f"{len(sums)} sums and {len(counts)} counts: one each, at least one")
    if len(sums) == 1:
        return None
    rng = np.random.default_rng(seed)
    means = []
    for _ in range(10):  # in tenths, so that thousands of documents need little memory
        drawn = rng.integers(0, len(sums), (RESAMPLES // 10, len(sums)))
        means.append(np.asarray(sums)[drawn].sum(1) / np.asarray(counts)[drawn].sum(1))
    low, high = np.percentile(np.concatenate(means), (2.5, 97.5))
    return float(low), float(high)


def exp(loss: float) -> float:
    """The perplexity of a mean loss, infinite where a float holds no more."""
    return math.exp(loss) if loss < 700 else math.inf


def exp_bounds(bounds: tuple[float, float] | None) -> tuple[float | None, float | None]:
    """Bounds of a perplexity from those of a mean loss."""
    return (None, None) if bounds is None else (exp(bounds[0]), exp(bounds[1]))
