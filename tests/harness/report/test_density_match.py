"""Rows are matched, nearest or off_density by what they measured, each arm by the average over its prompts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from harness.report.at_request import at_request
from harness.report.density_match import judge_densities
from harness.report.leaderboard import leaderboard_rows
from harness.study.identity import ArmIdentity
from harness.study.matching import Match
from harness.study.store import Store
from tests.harness.report.support import DENSE, SETTING, SPARSE, decoded, record_cell, record_times, row

TIMED = ArmIdentity(SETTING, "timed", 0.9, {}, 64, "reference")


def matches(store: Store) -> dict[tuple[str, str], str]:
    return {(r.method, r.task): str(r.match) for r in leaderboard_rows(store)}


def test_an_arm_is_judged_by_its_average_and_its_tasks_carry_the_verdict(tmp_path: Path) -> None:
    store = Store(tmp_path / "mine")
    for task, density in (("one", 0.08), ("two", 0.12)):
        record_cell(store, DENSE, task, [1.0] * 2)
        record_cell(store, SPARSE, task, [1.0] * 2, density=density)
        record_cell(store, replace(SPARSE, knobs={"width": 4}, method="net"), task, [1.0] * 2, density=density + 0.003)
    record_times(store, TIMED)
    verdicts = matches(store)
    assert {verdicts["sieve", task] for task in ("one", "two", "avg")} == {"matched"}, "0.08 and 0.12 are 0.1 together"
    assert {verdicts["net", task] for task in ("one", "two", "avg")} == {"off_density"}, "0.103 is 3 % off"
    assert {verdicts["full", task] for task in ("one", "two", "avg")} == {"None"}
    assert verdicts["timed", ""] == "matched", "of an arm without cells the prompt that was timed"


@pytest.mark.parametrize(
    ("densities", "expected"),
    [
        ((0.09, 0.12), [Match.NEAREST, Match.NEAREST]),
        ((0.09, 0.0999), [Match.OFF_DENSITY, Match.MATCHED]),
        ((0.12, 0.13), [Match.OFF_DENSITY, Match.OFF_DENSITY]),
        ((0.09,), [Match.OFF_DENSITY]),
    ],
)
def test_a_neighbour_is_nearest_beside_one_on_the_other_side(densities: tuple[float, ...], expected: list[Match]) -> None:
    rows = [row("a", 0.9, 4096, 0.5, knobs={"k": i}, density=d, neighbour=True) for i, d in enumerate(densities)]
    assert [r.match for r in judge_densities(rows)] == expected
    assert {r.match for r in judge_densities([replace(r, neighbour=False) for r in rows])} <= {"matched", "off_density"}
    apart = [replace(r, seed=i) for i, r in enumerate(rows)]
    assert Match.NEAREST not in [r.match for r in judge_densities(apart)], "of other samples it is no neighbour"


def test_arms_of_other_knobs_are_no_neighbours() -> None:
    """With no full rows two whole numbers miss the request, with one row the number above alone does; neither stands for the
    other's."""
    places = ((0, 1, 0.09), (0, 2, 0.12), (1, 2, 0.13))
    rows = [
        row("seer", 0.9, 4096, 0.5, knobs={"last": last, "blocks": blocks}, density=density, neighbour=True)
        for last, blocks, density in places
    ]
    judged = judge_densities(rows)
    assert [r.match for r in judged] == [Match.NEAREST, Match.NEAREST, Match.OFF_DENSITY]
    matched = replace(judged[2], density=0.1, match=Match.MATCHED)
    assert len(at_request([*judged[:2], matched]).averages) == 2, "a matched row of another arm doesn't stand for neighbours"


def test_a_sparsity_at_decode_is_a_request_of_its_own() -> None:
    rows = [decoded("net", 256, 0.9, density=d, sparsity=0.9) for d in (0.1, 0.3)] + [decoded("net", 256, 0.9)]
    assert [r.match for r in judge_densities(rows)] == [Match.MATCHED, Match.OFF_DENSITY, None], "a budget is no density"
    both = replace(rows[1], block_size=64, sparsity=0.5, density=0.5)
    assert judge_densities([both])[0].match == Match.OFF_DENSITY, "the worse of two counts"
