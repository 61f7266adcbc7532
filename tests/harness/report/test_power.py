"""The command plans with given discordances, or with those of a study's own arms."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from harness.report.power import arm_discordances
from harness.study.store import Store
from tests.harness.report.support import DENSE, SPARSE, record_cell

Command = Callable[..., int]


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "power.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_the_command_with_given_discordances(command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["job=power", "study=mine", "job.discordance=[0.05,0.1]", "job.margins=[0.02,0.2]", "job.powers=[0.8]"]
    assert command(*arguments) == 0
    plan = rows(tmp_path / "results" / "mine")
    assert [(r["claim"], r["discordance"], r["margin"]) for r in plan] == [
        ("non-inferior", "0.05", "0.02"),
        ("differs", "0.05", "0.02"),
        ("non-inferior", "0.05", "0.2"),
        ("non-inferior", "0.1", "0.02"),
        ("differs", "0.1", "0.02"),
        ("non-inferior", "0.1", "0.2"),
    ]
    assert all(0.8 <= float(r["reached"]) <= 1 for r in plan)
    assert 900 < int(plan[0]["samples"]) < 1200
    assert (tmp_path / "results" / "mine" / "power.png").stat().st_size > 10_000
    assert "non-inferior" in capsys.readouterr().out


def test_the_command_learns_from_a_study(command: Command, tmp_path: Path) -> None:
    store = Store(tmp_path / "results" / "mine")
    for task, scores in (("one", [1] * 16 + [0] * 4), ("two", [1] * 20)):
        record_cell(store, DENSE, task, [1] * 20)
        record_cell(store, SPARSE, task, list(scores))
    assert command("job=power", "study=mine", "job.margins=[0.05]") == 0
    plan = rows(store.folder)
    assert {(r["source"], r["discordance"]) for r in plan} == {("sieve 0.9 at 4096", "0.1")}


def test_arms_that_lose_more_than_any_margin_are_not_planned_for(tmp_path: Path) -> None:
    store = Store(tmp_path / "mine")
    record_cell(store, DENSE, "one", [1] * 20)
    record_cell(store, SPARSE, "one", [1] * 5 + [0] * 15)
    record_cell(store, replace(SPARSE, sparsity=0.5), "one", [1] * 19 + [0])
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
