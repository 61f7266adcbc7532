"""Statistics against known values, and against scipy where it has the same thing."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as scipy_stats

from harness import stats


@pytest.mark.parametrize(("k", "n"), [(0, 10), (3, 10), (10, 10), (81, 263), (1, 1)])
def test_wilson_equals_scipy(k: int, n: int) -> None:
    expected = scipy_stats.binomtest(k, n).proportion_ci(method="wilson")
    assert stats.wilson(k, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_known_value() -> None:
    # Newcombe (1998), Statistics in Medicine 17, table I: 81/263, method 3
    assert stats.wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)


@pytest.mark.parametrize(("k", "n"), [(1, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_nonsense(k: int, n: int) -> None:
    with pytest.raises(ValueError, match="needs n >= 1"):
        stats.wilson(k, n)


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (1, 0), (3, 9), (0, 8), (12, 12)])
def test_mcnemar_equals_binomial_test(wins: int, losses: int) -> None:
    n = wins + losses
    expected = scipy_stats.binomtest(wins, n).pvalue if n else 1.0
    assert stats.mcnemar(wins, losses) == pytest.approx(expected)


def test_binary_uses_wilson_and_fractions_bootstrap() -> None:
    assert stats.interval([1, 0, 1, 1]) == stats.wilson(3, 4)
    scores = [0.5, 0.25, 1.0, 0.75, 0.0, 0.5] * 2
    low, high = stats.interval(scores)
    assert low < np.mean(scores) < high
    assert stats.interval(scores) == (low, high), "seeded: the same again"


def test_bootstrap_is_near_the_normal_interval() -> None:
    scores = np.random.default_rng(1).random(400).tolist()
    low, high = stats.bootstrap([scores])
    half = 1.96 * np.std(scores) / 20
    assert (low, high) == pytest.approx((np.mean(scores) - half, np.mean(scores) + half), abs=0.006)


def test_sign_flip_exact_equals_scipy() -> None:
    d = [0.5, 0.25, -0.25, 1.0, 0.5, 0.75]
    expected = scipy_stats.permutation_test((d,), np.sum, permutation_type="samples", n_resamples=np.inf).pvalue
    assert stats.sign_flip(d) == pytest.approx(expected)


def test_sign_flip_drawn_is_near_exact() -> None:
    d = np.random.default_rng(0).normal(0.2, 1, 30).tolist()
    expected = scipy_stats.ttest_1samp(d, 0).pvalue
    assert stats.sign_flip(d) == pytest.approx(expected, abs=0.03)
    assert stats.sign_flip(d) == stats.sign_flip(d)


def test_paired_p() -> None:
    assert stats.paired_p([1, 1, 0], [1, 1, 0]) == 1.0
    assert stats.paired_p([0] * 10, [1] * 10) == pytest.approx(2 / 2**10)
    assert stats.paired_p([0.5] * 10, [1] * 10) == pytest.approx(2 / 2**10)
    with pytest.raises(ValueError, match="differ in number"):
        stats.paired_p([1], [1, 0])


def test_average_over_tasks_weighs_tasks_not_samples() -> None:
    groups = [[1.0] * 90 + [0.0] * 10, [0.0, 1.0] * 6]
    low, high = stats.average_interval(groups)
    assert 0.5 < low < 0.7 < high < 0.9
    assert stats.average_interval([[1, 1], [1, 1]]) == stats.wilson(4, 4), "no spread at all: no interval of width 0"
    assert stats.average_p([[0] * 6, [0] * 6], [[1] * 6, [1] * 6]) == pytest.approx(2 / 2**12)


def test_few_samples_never_look_certain() -> None:
    assert stats.interval([0.75, 0.75]) == stats.wilson(1.5, 2)
    assert stats.average_interval([[1, 1], [0.5, 0.5], [1, 0]]) == stats.wilson(4, 6)
