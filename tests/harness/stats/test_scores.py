"""Statistics against known values, and against scipy where it has the same thing."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as scipy_stats

from harness.stats.scores import average_interval, average_p, mcnemar_p, mean_interval, paired_p, sign_flip_p, wilson_interval


@pytest.mark.parametrize(("k", "n"), [(0, 10), (3, 10), (10, 10), (81, 263), (1, 1)])
def test_wilson_equals_scipy(k: int, n: int) -> None:
    expected = scipy_stats.binomtest(k, n).proportion_ci(method="wilson")
    assert wilson_interval(k, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_known_value() -> None:
    # Newcombe (1998), Statistics in Medicine 17, table I: 81/263, method 3
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)


@pytest.mark.parametrize(("k", "n"), [(1, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_nonsense(k: int, n: int) -> None:
    with pytest.raises(ValueError, match="needs n >= 1"):
        wilson_interval(k, n)


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (1, 0), (3, 9), (0, 8), (12, 12)])
def test_mcnemar_equals_binomial_test(wins: int, losses: int) -> None:
    n = wins + losses
    expected = scipy_stats.binomtest(wins, n).pvalue if n else 1.0
    assert mcnemar_p(wins, losses) == pytest.approx(expected)


def test_fractions_get_the_interval_of_a_coin_with_their_mean() -> None:
    assert mean_interval([1, 0, 1, 1]) == wilson_interval(3, 4)
    assert mean_interval([0.75, 0.75]) == wilson_interval(1.5, 2), "equal scores: no interval of width 0"
    assert mean_interval([0.1] * 10)[0] > 0, "a sum a little off by rounding is no error"
    with pytest.raises(ValueError, match="no scores"):
        mean_interval([])


@pytest.mark.parametrize("n", [1, 4, 50])
def test_a_lower_score_never_raises_a_bound(n: int) -> None:
    scores = [1.0] * n
    before = mean_interval(scores)
    for lowered in (0.75, 0.5, 0.0):
        scores[0] = lowered
        after = mean_interval(scores)
        assert after[0] < before[0] and after[1] <= before[1]
        before = after


def average(groups: list[list[float]]) -> tuple[float, float]:
    return average_interval([sum(g) / len(g) for g in groups], [mean_interval(g) for g in groups])


def test_average_of_one_task_is_the_task() -> None:
    assert average([[1.0, 0.0, 0.5]]) == pytest.approx(wilson_interval(1.5, 3))


def test_average_weighs_tasks_not_samples_and_has_width_at_the_ceiling() -> None:
    low, high = average([[1.0] * 90 + [0.0] * 10, [0.0, 1.0] * 6])
    assert 0.5 < low < 0.7 < high < 0.9
    low, high = average([[1.0] * 50] * 11)
    assert low == pytest.approx(1 - (1 - wilson_interval(50, 50)[0]) / np.sqrt(11)) and high == 1.0
    assert average([[1.0] * 50] * 10 + [[1.0] * 49 + [0.75]])[0] < low
    with pytest.raises(ValueError, match="at least one"):
        average_interval([], [])


@pytest.mark.parametrize("n", [4, 20, 50])
def test_intervals_hold_the_truth_as_often_as_they_say(n: int) -> None:
    truth = np.array([0.99] * 6 + [0.5, 0.8, 0.9, 0.05, 0.999])
    rng = np.random.default_rng(n)
    trials, held = 400, 0
    for _ in range(trials):
        groups = (rng.random((n, len(truth))) < truth).T.astype(float)
        low, high = average(groups.tolist())
        held += low <= truth.mean() <= high
    assert held / trials > 0.93


def test_sign_flip_exact_equals_scipy() -> None:
    d = [0.5, 0.25, -0.25, 1.0, 0.5, 0.75]
    expected = scipy_stats.permutation_test((d,), np.sum, permutation_type="samples", n_resamples=np.inf).pvalue
    assert sign_flip_p(d) == pytest.approx(expected)


def test_sign_flip_drawn_is_near_exact() -> None:
    d = np.random.default_rng(0).normal(0.2, 1, 30).tolist()
    expected = scipy_stats.ttest_1samp(d, 0).pvalue
    assert sign_flip_p(d) == pytest.approx(expected, abs=0.03)
    assert sign_flip_p(d) == sign_flip_p(d)


def test_paired_p() -> None:
    assert paired_p([1, 1, 0], [1, 1, 0]) == 1.0
    assert paired_p([0] * 10, [1] * 10) == pytest.approx(2 / 2**10)
    assert paired_p([0.5] * 10, [1] * 10) == pytest.approx(2 / 2**10)
    with pytest.raises(ValueError, match="differ in number"):
        paired_p([1], [1, 0])


def test_average_p_pairs_all_samples() -> None:
    assert average_p([[0] * 6, [0] * 6], [[1] * 6, [1] * 6]) == pytest.approx(2 / 2**12)
