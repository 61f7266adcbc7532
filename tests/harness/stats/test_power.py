"""Power is what a simulation of the leaderboard's own tests finds."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from harness.stats import paired, power
from harness.stats.scores import mcnemar_p


def outcomes(n: int, discordance: float, true: float, trials: int) -> Counter[tuple[int, int]]:
    """Return how often each pair of wins and losses is drawn: a test says the same of it each time."""
    rng = np.random.default_rng(n)
    shares = ((discordance + true) / 2, (discordance - true) / 2, 1 - discordance)
    return Counter((int(wins), int(losses)) for wins, losses, _ in rng.multinomial(n, shares, trials))


@pytest.mark.parametrize(
    ("n", "discordance", "margin", "true"),
    [(300, 0.05, 0.04, 0.0), (150, 0.2, 0.1, -0.02), (60, 0.0, 0.05, 0.0), (200, 0.0, 0.02, 0.0), (400, 0.08, 0.03, 0.01)],
)
def test_power_of_noninferiority_by_simulation(n: int, discordance: float, margin: float, true: float) -> None:
    drawn = outcomes(n, discordance, true, 1000)
    shown = sum(
        times * paired.is_noninferior(paired.score_interval(wins, losses, n)[0], margin)
        for (wins, losses), times in drawn.items()
    )
    assert power.power_noninferior(n, discordance, margin, true) == pytest.approx(shown / 1000, abs=0.04)


@pytest.mark.parametrize(("n", "discordance", "effect"), [(100, 0.2, 0.1), (400, 0.05, 0.03), (30, 0.5, 0.5), (50, 0.1, 0.0)])
def test_power_to_see_a_difference_by_simulation(n: int, discordance: float, effect: float) -> None:
    drawn = outcomes(n, discordance, -effect, 3000)
    seen = sum(times * (mcnemar_p(wins, losses) <= 0.05) for (wins, losses), times in drawn.items())
    assert power.power_differs(n, discordance, effect) == pytest.approx(seen / 3000, abs=0.03)


def test_exact_and_normal_power_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = power.power_noninferior(8000, 0.1, 0.01), power.power_differs(8000, 0.1, 0.01)
    monkeypatch.setattr(power, "EXACT", 10)
    normal = power.power_noninferior(8000, 0.1, 0.01), power.power_differs(8000, 0.1, 0.01)
    assert exact == pytest.approx(normal, abs=0.02)


def test_samples_reach_the_power_and_a_tenth_fewer_do_not() -> None:
    for reach in (lambda n: power.power_noninferior(n, 0.05, 0.02), lambda n: power.power_differs(n, 0.1, 0.05)):
        n = power.samples_for(reach, 0.8)
        assert n is not None and reach(n) >= 0.8 > reach(int(0.9 * n))
    assert power.samples_for(lambda n: 0.5, 0.8) is None


def test_without_a_difference_189_samples_show_two_points() -> None:
    assert power.power_noninferior(188, 0.0, 0.02) == 0 and power.power_noninferior(189, 0.0, 0.02) == 1


def test_bad_input() -> None:
    assert power.independent_discordance(0.9) == pytest.approx(0.18)
    with pytest.raises(ValueError, match="no less than the difference"):
        power.power_differs(100, 0.05, 0.1)
