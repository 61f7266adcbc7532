"""The interval of a paired difference holds the truth as often as it says, also where almost no sample differs."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import xlogy

from harness.stats import paired
from harness.stats.paired import Z95, difference_interval, is_noninferior, score_interval, score_statistic
from harness.stats.scores import holm_adjusted


@pytest.fixture
def bounds_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Search for the bound of the same counts once, however often a simulation draws them."""
    monkeypatch.setattr(paired, "_bound", lru_cache(maxsize=None)(paired._bound))


def test_no_difference_is_as_wide_as_the_samples_are_few() -> None:
    z2 = Z95**2
    for n in (4, 50, 550):
        low, high = difference_interval([[1.0] * n], [[1.0] * n])
        assert (low, high) == (pytest.approx(-z2 / (n + z2)), pytest.approx(z2 / (n + z2)))
    assert not is_noninferior(difference_interval([[1.0] * 188], [[1.0] * 188])[0], 0.02)
    assert is_noninferior(difference_interval([[1.0] * 189], [[1.0] * 189])[0], 0.02)


@pytest.mark.parametrize(
    ("wins", "losses", "n", "truth"), [(0, 1, 44, -0.1), (7, 19, 120, 0.03), (3, 0, 10, -0.5), (4, 9, 60, 0.4)]
)
def test_the_statistic_takes_the_likeliest_shares_under_the_difference(wins: int, losses: int, n: int, truth: float) -> None:
    """The closed form against a search for the maximum of the trinomial likelihood with share of wins - losses = truth."""

    def unlikely(worse: float) -> float:
        shares = (worse + truth, worse, 1 - 2 * worse - truth)
        return -float(xlogy((wins, losses, n - wins - losses), shares).sum())

    minimum = minimize_scalar(unlikely, bounds=(max(0.0, -truth), (1 - truth) / 2), method="bounded", options={"xatol": 1e-12})
    variance = n * (2 * minimum.x + truth - truth**2)
    expected = (wins - losses - n * truth) / math.sqrt(variance)
    assert float(score_statistic(wins, losses, n, truth)) == pytest.approx(expected, rel=1e-3)


def test_score_interval_is_where_the_statistic_is_z() -> None:
    low, high = score_interval(7, 19, 120)
    assert float(score_statistic(7, 19, 120, low)) == pytest.approx(Z95, abs=1e-6)
    assert float(score_statistic(7, 19, 120, high)) == pytest.approx(-Z95, abs=1e-6)
    assert score_interval(19, 7, 120) == (pytest.approx(-high), pytest.approx(-low))


def test_the_statistic_at_no_difference_is_mcnemars() -> None:
    assert float(score_statistic(7, 19, 120, 0.0)) == pytest.approx((7 - 19) / math.sqrt(7 + 19))


def test_many_small_tasks_weigh_the_same() -> None:
    scores, dense = [[1.0] * 30, [0.0, 1.0]], [[1.0] * 30, [1.0, 1.0]]
    assert paired.mean_difference(scores, dense) == pytest.approx(-0.25)
    low, high = difference_interval(scores, dense)
    assert low < -0.25 < high
    alone = score_interval(0, 0.25 * 3.75, 3.75)  # 2² / (1/30 + 1/2) = 7.5 samples
    assert low == pytest.approx(score_interval(0, 0.25 * 7.5, 7.5)[0]) and low > alone[0]


@pytest.mark.usefixtures("bounds_once")
@pytest.mark.parametrize(
    ("tasks", "n", "lost", "gained"),
    [
        (1, 50, 0.02, 0.0),
        (1, 200, 0.03, 0.02),
        (11, 50, 0.01, 0.005),
        (1, 200, 0.3, 0.1),
        pytest.param(11, 20, 0.2, 0.15, marks=pytest.mark.slow),
    ],
)
def test_the_interval_holds_the_truth(tasks: int, n: int, lost: float, gained: float) -> None:
    rng = np.random.default_rng(int(1000 * lost) + n)
    trials, held, false = 400, 0, 0
    for trial in range(trials):
        draw = rng.random((tasks, n))
        d = np.where(draw < lost, -1.0, np.where(draw > 1 - gained, 1.0, 0.0))
        dense = np.where(d == 0, rng.random(d.shape) < 0.7, d < 0).astype(float)
        low, high = difference_interval((dense + d).tolist(), dense.tolist(), seed=trial)
        held += low <= gained - lost <= high
        false += is_noninferior(low, lost - gained)  # the truth lies on the margin: claimed wrongly
    assert held / trials > 0.925
    assert false / trials < 0.05


@pytest.mark.usefixtures("bounds_once")
def test_fractions_are_never_too_narrow() -> None:
    rng = np.random.default_rng(1)
    held = 0
    for trial in range(300):
        dense = rng.choice([0.25, 0.5, 0.75], (3, 60))
        d = np.where(rng.random(dense.shape) < 0.3, rng.choice([-0.25, 0.25], dense.shape, p=[0.7, 0.3]), 0.0)
        low, high = difference_interval((dense + d).tolist(), dense.tolist(), seed=trial)
        held += low <= -0.03 <= high
    assert held / 300 > 0.925


def test_the_bootstrap_is_the_same_each_time_and_of_values_as_of_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    dense = rng.random(300).round(1)
    scores = np.clip(dense + rng.normal(-0.05, 0.2, 300), 0, 1)
    one, two = (difference_interval([scores.tolist()], [dense.tolist()], seed=3) for _ in range(2))
    assert one == two
    mean, error = (scores - dense).mean(), (scores - dense).std(ddof=1) / math.sqrt(300)
    assert one == (pytest.approx(mean - Z95 * error, abs=0.003), pytest.approx(mean + Z95 * error, abs=0.003))
    coarse = scores.round(1)  # 16 values or so: drawn by how often each comes
    coarse_interval = difference_interval([coarse.tolist()], [dense.tolist()])
    mean, error = (coarse - dense).mean(), (coarse - dense).std(ddof=1) / math.sqrt(300)
    assert coarse_interval == (pytest.approx(mean - Z95 * error, abs=0.003), pytest.approx(mean + Z95 * error, abs=0.003))


def test_bad_input() -> None:
    for scores, dense in (([], []), ([[]], [[]]), ([[1.0]], [[1.0, 0.0]])):
        with pytest.raises(ValueError, match="differ in number"):
            difference_interval(scores, dense)
    with pytest.raises(ValueError, match="at most n wins"):
        score_interval(3, 3, 5)


def test_holm() -> None:
    assert holm_adjusted([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm_adjusted([0.5, 0.9]) == [1.0, 1.0]
    assert holm_adjusted([]) == []
