"""Intervals and paired tests for per-sample scores in [0, 1].

Scores are binary for most tasks (the needle was found or not) and fractional for some (share of the answers found). A
score in [0, 1] with mean p varies at most as much as a coin with that p, so the Wilson (1927) interval holds for both; it is
wide for fractions, and, unlike a bootstrap, never narrow near 0 and 1 or with few samples. Means over tasks combine
the tasks' intervals (MOVER: Zou & Donner 2008). Tests are paired, because dense and sparse see the same samples: exact
McNemar for binary scores, seeded sign flips for others. Who reads many of them at once reads them after Holm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Scores = Sequence[float]
PERMUTATIONS = 10_000
"""Sign flips that are drawn where there are too many to try all."""
_EXACT = 12
"""Up to this many differing samples, all 2^n sign flips are tried."""
_Z95 = 1.959963984540054


def wilson_interval(successes: float, n: int, z: float = _Z95) -> tuple[float, float]:
    """Return the Wilson score interval of a proportion (Wilson 1927; 95 % at z = 1.96).

    Raises ValueError for n < 1 or successes outside [0, n].
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"successes={successes} of n={n}: needs n >= 1 and 0 <= successes <= n")
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def is_binary(scores: Scores) -> bool:
    """Return whether every score is 0 or 1."""
    return all(s in (0, 1) for s in scores)


def mean_interval(scores: Scores) -> tuple[float, float]:
    """Return the 95 % Wilson interval of the mean score. Raises ValueError without scores."""
    if not len(scores):
        raise ValueError("no scores: an interval needs at least one sample")
    return wilson_interval(min(math.fsum(scores), len(scores)), len(scores))


def average_interval(means: Sequence[float], intervals: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the 95 % interval of the mean of independent means, each with its own interval: the distances from mean to bound
    add in squares (MOVER: Zou & Donner, Statistics in Medicine 27, 2008, eq. 3). Raises ValueError without means."""
    if not means or len(means) != len(intervals):
        raise ValueError(f"{len(means)} means and {len(intervals)} intervals: one each, at least one")
    centre = math.fsum(means) / len(means)
    below = math.hypot(*(m - low for m, (low, _) in zip(means, intervals, strict=True))) / len(means)
    above = math.hypot(*(high - m for m, (_, high) in zip(means, intervals, strict=True))) / len(means)
    return max(0.0, centre - below), min(1.0, centre + above)


def mcnemar_p(wins: int, losses: int) -> float:
    """Return the two-sided exact McNemar p-value: the binomial tail of the discordant pairs under a fair coin (McNemar
    1947)."""
    n, k = wins + losses, min(wins, losses)
    if n == 0:
        return 1.0
    tail = sum(math.comb(n, i) for i in range(k + 1))
    return min(1.0, 2 * tail / 2**n)


def sign_flip_p(differences: Scores, weights: Scores | None = None, *, seed: int = 0) -> float:
    """Return the two-sided paired permutation p-value of sum(weights · differences) = 0, flipping signs (Fisher 1935; Phipson
    & Smyth 2010 for the +1 where flips are drawn). Exact up to 12 differing samples, drawn with `seed` beyond."""
    pairs = zip(differences, [1.0] * len(differences) if weights is None else weights, strict=True)
    terms = np.array([d * w for d, w in pairs if d != 0])
    n = len(terms)
    if n == 0:
        return 1.0
    observed = abs(terms.sum()) - 1e-12
    if n <= _EXACT:
        flips = 1.0 - 2.0 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
        return float((abs(flips @ terms) >= observed).mean())
    rng = np.random.default_rng(seed)
    hits = 0
    for _ in range(10):  # in tenths, so that thousands of samples need little memory
        drawn = rng.integers(0, 2, (PERMUTATIONS // 10, n)) * 2.0 - 1.0
        hits += int((abs(drawn @ terms) >= observed).sum())
    return (hits + 1) / (PERMUTATIONS + 1)


def paired_p(scores: Scores, dense: Scores, *, seed: int = 0) -> float:
    """Return the two-sided p-value that method and dense attention are equally good, from the same samples in the same order:
    exact McNemar for binary scores, sign flips for others. Raises ValueError where they differ in number."""
    if len(scores) != len(dense):
        raise ValueError(f"paired scores differ in number: {len(scores)} and {len(dense)}")
    if is_binary(scores) and is_binary(dense):
        wins = sum(s > d for s, d in zip(scores, dense, strict=True))
        losses = sum(s < d for s, d in zip(scores, dense, strict=True))
        return mcnemar_p(wins, losses)
    return sign_flip_p([s - d for s, d in zip(scores, dense, strict=True)], seed=seed)


def average_p(groups: Sequence[Scores], dense: Sequence[Scores], *, seed: int = 0) -> float:
    """Return the two-sided p-value for the mean over tasks, a list of scores each: sign flips of all pairs, each task weighing
    the same."""
    if len(groups) == 1:
        return paired_p(groups[0], dense[0], seed=seed)
    differences, weights = [], []
    for scores, dense_scores in zip(groups, dense, strict=True):
        differences += [s - d for s, d in zip(scores, dense_scores, strict=True)]
        weights += [1 / len(scores)] * len(scores)
    return sign_flip_p(differences, weights, seed=seed)


def holm_adjusted(p_values: Sequence[float]) -> list[float]:
    """Return the p-values of one family, adjusted: rejecting those below α errs at all in at most a share α of families,
    whatever depends on what (Holm, Scandinavian Journal of Statistics 6, 1979)."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted
