"""The paired difference of a method to dense attention with its interval, and "near-lossless" as a test instead of a word.

Both saw the same samples, so the difference of a sample is score - dense score, in [-1, 1]. The 95 % interval of its mean is a
bootstrap over the samples within each task, each task weighing the same. A bootstrap of few differing samples is too narrow,
and of none has no width at all: where fewer than 30 differ, the score interval of Tango (1998) for matched pairs takes its
place, which four equal answers out of four leave as wide as they should. It is made for binary scores. With fractional
ones, the sums of gains and of losses take the place of the counts: a sample's squared difference is at most its absolute one,
so the variance is at most that of a coin, and the interval is wide rather than narrow, like the Wilson interval of `scores`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Z95 = 1.959963984540054
"""The 97.5 % quantile of the standard normal distribution."""
RESAMPLES = 4_000
"""How often the bootstrap draws the samples."""
ENOUGH = 30
"""Differing samples from which on the bootstrap is used."""

ScoresByTask = Sequence[Sequence[float]]
"""A list of scores for each task, in the order of the samples."""
Array = npt.NDArray[np.float64]


def mean_difference(scores: ScoresByTask, dense: ScoresByTask) -> float:
    """Return the mean of score - dense score, each task weighing the same. Raises ValueError for tasks without samples, or
    samples that are not in pairs."""
    return math.fsum(float(d.mean()) for d in _differences(scores, dense)) / len(scores)


def difference_interval(scores: ScoresByTask, dense: ScoresByTask, *, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % interval of `mean_difference`; seed: of the bootstrap. Raises ValueError for tasks without samples, or
    samples that are not in pairs."""
    pairs = _differences(scores, dense)
    if sum(int(np.count_nonzero(d)) for d in pairs) >= ENOUGH and min(map(len, pairs)) > 1:
        return _bootstrap(pairs, seed)
    # equal weights of unequal tasks: as many samples as would give the mean of all of them the same variance (Kish 1965)
    n = len(pairs) ** 2 / math.fsum(1 / len(d) for d in pairs)
    wins, losses = (n * math.fsum(float(np.maximum(sign * d, 0).mean()) for d in pairs) / len(pairs) for sign in (1, -1))
    return score_interval(wins, losses, n)


def _differences(scores: ScoresByTask, dense: ScoresByTask) -> list[Array]:
    if not scores or [len(s) for s in scores] != [len(d) for d in dense] or not all(len(s) for s in scores):
        counts = f"{[len(s) for s in scores]} and {[len(d) for d in dense]}"
        raise ValueError(f"paired scores differ in number, or there are none: {counts} samples of each task")
    return [np.subtract(s, d, dtype=np.float64) for s, d in zip(scores, dense, strict=True)]


def _bootstrap(pairs: Sequence[Array], seed: int) -> tuple[float, float]:
    """Return percentiles of the resampled mean, spread by sqrt(n / (n - 1)) in each task, without which few samples make it too
    narrow (Hesterberg, The American Statistician 69, 2015)."""
    rng = np.random.default_rng(seed)
    means = np.zeros(RESAMPLES)
    for d in pairs:
        values, counts = np.unique(d, return_counts=True)
        n, mean = len(d), float(d.mean())
        if len(values) > 16:  # fractions of many kinds: draw the samples themselves
            drawn = d[rng.integers(0, n, (RESAMPLES, n))].mean(-1)
        else:  # draw how often each value comes, which is the same and cheaper
            drawn = rng.multinomial(n, counts / n, RESAMPLES) @ values / n
        means += mean + math.sqrt(n / (n - 1)) * (drawn - mean)
    low, high = np.quantile(means / len(pairs), (0.025, 0.975))
    return max(-1.0, float(low)), min(1.0, float(high))


def score_statistic(wins: npt.ArrayLike, losses: npt.ArrayLike, n: float, difference: float) -> Array:
    """Return how many standard errors (wins - losses) / n lies above `difference`, were that the truth (Tango, Statistics in
    Medicine 17, 1998, eq. 10 and 13). wins, losses: arrays of counts, or sums of gains and losses; difference in (-1, 1)."""
    b, c = np.asarray(wins, dtype=np.float64), np.asarray(losses, dtype=np.float64)
    statistic: Array = _statistic(b, c, n, difference, np.sqrt, np.maximum)
    return statistic


def _statistic(
    b: Any, c: Any, n: float, difference: float, sqrt: Callable[[Any], Any], maximum: Callable[[Any, float], Any]
) -> Any:
    """Return the statistic of arrays with numpy's functions, and of one pair of numbers with Python's own, which take a tenth
    of the time for it."""
    linear = -b - c + (2 * n - b + c) * difference
    root = sqrt(maximum(linear * linear + 8 * n * c * difference * (1 - difference), 0.0))
    worse = (root - linear) / (4 * n)  # the likeliest share of losses under that difference
    variance = maximum(n * (2 * worse + difference * (1 - difference)), 1e-12)
    return (b - c - n * difference) / sqrt(variance)


def score_interval(wins: float, losses: float, n: float, z: float = Z95) -> tuple[float, float]:
    """Return the interval of the difference of two paired proportions: every difference whose score statistic is within z. With
    no sample that differs it is ± z² / (n + z²). Raises ValueError for n <= 0 or more wins and losses than samples."""
    if not n > 0 or wins < 0 or losses < 0 or wins + losses > n * (1 + 1e-9):
        raise ValueError(f"wins={wins}, losses={losses} of n={n}: needs n > 0 and at most n wins and losses together")
    return _bound(wins, losses, n, z), -_bound(losses, wins, n, z)


def _bound(wins: float, losses: float, n: float, z: float) -> float:
    """Return the lower bound, by bisection: the statistic falls as the difference rises."""
    low, high = -1.0, (wins - losses) / n
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _statistic(wins, losses, n, middle, math.sqrt, max) > z else (low, middle)
    return low


def is_noninferior(low: float, margin: float) -> bool:
    """Return whether a method is shown to be worse than dense by less than `margin`: the lower bound of the 95 % interval of
    the difference lies above -margin. One-sided, it errs in at most 2.5 % of cases."""
    return low > -margin
