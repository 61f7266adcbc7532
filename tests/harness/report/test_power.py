"""Power is what a simulation of the leaderboard's own tests finds, and the command plans with a study's own discordance."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from harness.report.power import arm_discordances
from harness.stats import paired, power
from harness.stats.scores import mcnemar
from harness.study.store import Store
from tests.harness.report.test_leaderboard import DENSE, SPARSE, fill

Command = Callable[..., int]


def outcomes(n: int, discordance: float, true: float, trials: int) -> list[tuple[int, int]]:
    rng = np.random.default_rng(n)
    shares = ((discordance + true) / 2, (discordance - true) / 2, 1 - discordance)
    return [(int(wins), int(losses)) for wins, losses, _ in rng.multinomial(n, shares, trials)]


@pytest.mark.parametrize(
    ("n", "discordance", "margin", "true"),
    [(300, 0.05, 0.04, 0.0), (150, 0.2, 0.1, -0.02), (60, 0.0, 0.05, 0.0), (200, 0.0, 0.02, 0.0), (400, 0.08, 0.03, 0.01)],
)
def test_power_of_noninferiority_by_simulation(n: int, discordance: float, margin: float, true: float) -> None:
    shown = [
        paired.noninferior(paired.score_interval(wins, losses, n)[0], margin)
        for wins, losses in outcomes(n, discordance, true, 1000)
    ]
    assert power.power_noninferior(n, discordance, margin, true) == pytest.approx(np.mean(shown), abs=0.04)


@pytest.mark.parametrize(("n", "discordance", "effect"), [(100, 0.2, 0.1), (400, 0.05, 0.03), (30, 0.5, 0.5), (50, 0.1, 0.0)])
def test_power_to_see_a_difference_by_simulation(n: int, discordance: float, effect: float) -> None:
    seen = [mcnemar(wins, losses) <= 0.05 for wins, losses in outcomes(n, discordance, -effect, 3000)]
    assert power.power_differs(n, discordance, effect) == pytest.approx(np.mean(seen), abs=0.03)


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


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "power.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_the_command_with_given_discordances(command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = ["job=power", "study=mine", "job.discordance=[0.05,0.1]", "job.margins=[0.02,0.2]", "job.powers=[0.8]"]
    assert command(*wanted) == 0
    found = rows(tmp_path / "results" / "mine")
    assert [(r["claim"], r["discordance"], r["margin"]) for r in found] == [
        ("non-inferior", "0.05", "0.02"),
        ("differs", "0.05", "0.02"),
        ("non-inferior", "0.05", "0.2"),
        ("non-inferior", "0.1", "0.02"),
        ("differs", "0.1", "0.02"),
        ("non-inferior", "0.1", "0.2"),
    ]
    assert all(0.8 <= float(r["reached"]) <= 1 for r in found)
    assert 900 < int(found[0]["samples"]) < 1200
    assert (tmp_path / "results" / "mine" / "power.png").stat().st_size > 10_000
    assert "non-inferior" in capsys.readouterr().out


def test_the_command_learns_from_a_study(command: Command, tmp_path: Path) -> None:
    store = Store(tmp_path / "results" / "mine")
    for task, scores in (("one", [1] * 16 + [0] * 4), ("two", [1] * 20)):
        fill(store, DENSE, task, [1] * 20)
        fill(store, SPARSE, task, list(scores))
    assert command("job=power", "study=mine", "job.margins=[0.05]") == 0
    found = rows(store.folder)
    assert {(r["source"], r["discordance"]) for r in found} == {("sieve 0.9 at 4096", "0.1")}


def test_arms_that_lose_more_than_any_margin_are_not_planned_for(tmp_path: Path) -> None:
    store = Store(tmp_path / "mine")
    fill(store, DENSE, "one", [1] * 20)
    fill(store, SPARSE, "one", [1] * 5 + [0] * 15)
    fill(store, replace(SPARSE, sparsity=0.5), "one", [1] * 19 + [0])
    assert [arm.arm for arm in arm_discordances(store, 0.1)] == ["sieve 0.5 at 4096"]
    assert len(arm_discordances(store, 0.01)) == 2, "where all do, all are taken"


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("job.margins=[0]", "job.margins=[0]: must be above 0"),
        ("job.alpha=2", "job.alpha=2"),
        ("job.powers=[]", "job.powers=[]"),
        ("job.difference=0.5", "can't be larger than the discordance"),
        ("job.accuracy=0.9", "give one of them"),
    ],
)
def test_settings_out_of_range(command: Command, capsys: pytest.CaptureFixture[str], argument: str, message: str) -> None:
    assert command("job=power", "job.discordance=0.1", argument) != 0
    assert message in capsys.readouterr().err


def test_nothing_to_learn_from(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("job=power", "study=none") != 0
    assert "has no method beside dense" in capsys.readouterr().err
