"""The power of the tests that the leaderboard makes, and how many samples in pairs a claim needs.

What matters is how often method and dense differ on a sample, the discordance: the share of samples that only one of them
gets right. Samples on which they agree say nothing about which is better. All numbers are of pairs with binary scores; with
fractions the discordance is the mean absolute difference of a sample, and fewer samples will do.

- "differs": the exact McNemar test finds a true difference of `effect` (two-sided, at alpha).
- "non-inferior": the lower bound of the interval lies above -margin when the true difference is `difference` (one-sided, at
  alpha / 2, which is what a two-sided interval of 1 - alpha does).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy import stats as scipy_stats

from harness.stats.paired import score_statistic

MOST_SAMPLES = 1_000_000
"""Samples beyond which a claim counts as out of reach."""
EXACT = 20_000
"""Up to so many samples power is summed over every outcome; beyond, by the normal approximation."""
TAIL = 8.0
"""Standard deviations of the number of discordant pairs that are summed over."""


def independent_discordance(accuracy: float) -> float:
    """Return the discordance of two models of this accuracy whose mistakes have nothing to do with each other: 2·p·(1 - p), the
    most that is to be expected. A method and its own model agree far more."""
    return 2 * accuracy * (1 - accuracy)


def power_differs(n: int, discordance: float, effect: float, alpha: float = 0.05) -> float:
    """Return the power of the two-sided exact McNemar test with n pairs, when the true difference is ±effect. Raises ValueError
    for a discordance outside [0, 1] or below the effect."""
    _check(discordance, effect)
    if n > EXACT:
        z = float(scipy_stats.norm.isf(alpha / 2))
        return _normal((abs(effect) * math.sqrt(n) - z * math.sqrt(discordance)) / _deviation(discordance, effect))
    better = (discordance + abs(effect)) / (2 * discordance)  # of the discordant pairs, the share that goes the one way
    m, chances = _discordant(n, discordance)
    # reject at k losses or fewer, where twice the tail of a fair coin is at most alpha; at none where k is -1
    most = scipy_stats.binom.ppf(alpha / 2, m, 0.5)
    while (over := 2 * scipy_stats.binom.cdf(most, m, 0.5) > alpha).any():
        most -= over
    return float(chances @ (scipy_stats.binom.cdf(most, m, 1 - better) + scipy_stats.binom.cdf(most, m, better)))


def power_noninferior(n: int, discordance: float, margin: float, difference: float = 0.0, alpha: float = 0.05) -> float:
    """Return the power of the score test of Tango (see `harness.stats.paired`) that the difference is above -margin, with n
    pairs. Raises ValueError for a discordance outside [0, 1] or below the difference."""
    _check(discordance, difference)
    z = float(scipy_stats.norm.isf(alpha / 2))
    if n > EXACT:
        under = math.sqrt(max(discordance, margin) - margin**2)  # the deviation where the truth lies on the margin
        return _normal(((difference + margin) * math.sqrt(n) - z * under) / _deviation(discordance, difference))
    better = (discordance + difference) / (2 * discordance) if discordance else 0.0
    m, chances = _discordant(n, discordance)
    low, high = np.full_like(m, -1), m + 1  # of m discordant pairs, high wins or more show it: the statistic rises with them
    while (high - low > 1).any():
        wins = (low + high) // 2  # low itself where it is settled
        shown = (wins > low) & (score_statistic(wins, m - wins, n, -margin) > z)
        low, high = np.where(shown, low, wins), np.where(shown, wins, high)
    return float(chances @ scipy_stats.binom.sf(high - 1, m, better))


def samples_for(power: Callable[[int], float], target: float) -> int | None:
    """Return the smallest number of pairs from which on `power(n)` reaches `target`, to a hundredth; None above MOST_SAMPLES.
    Power of exact tests rises in teeth: it is the first tooth that a doubling and halving sees."""
    high = 8
    while power(high) < target:
        high *= 2
        if high > MOST_SAMPLES:
            return None
    low = high // 2
    while high - low > max(1, high // 100):
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle) >= target else (middle, high)
    return high


def _discordant(n: int, discordance: float) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Return the numbers of discordant pairs that may come up, and how likely each is, in two arrays."""
    half = TAIL * math.sqrt(n * discordance * (1 - discordance)) + TAIL
    m = np.arange(max(0, int(n * discordance - half)), min(n, math.ceil(n * discordance + half)) + 1)
    chances: npt.NDArray[np.float64] = scipy_stats.binom.pmf(m, n, discordance)
    return m[chances > 1e-9], chances[chances > 1e-9]


def _deviation(discordance: float, difference: float) -> float:
    return math.sqrt(max(discordance - difference**2, 1e-12))


def _normal(z: float) -> float:
    return float(scipy_stats.norm.cdf(z))


def _check(discordance: float, difference: float) -> None:
    if not 0 <= discordance <= 1 or abs(difference) > discordance:
        raise ValueError(
            f"discordance={discordance}, difference={difference}: the discordance is the share of samples on which the two "
            "differ, in [0, 1], and no less than the difference"
        )
