"""Which values a search tries: how few meet a target, and what is tried on steps, out of reach and between whole numbers."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from harness.arms.knob_search import KnobSearch
from harness.study.matching import is_matched
from methods.parts.base import Knob

SHARE = Knob("share", low=0.0, high=1.0, rising=True)
FACTOR = Knob("factor", low=1e-6, high=1e12, rising=False, log=True)
BLOCKS = Knob("blocks", low=1, high=1 << 16, rising=True, log=True, whole=True)
Density = Callable[[float], float]


def search(knob: Knob, target: float, few: Density, whole: Density, *, passes: int = 3) -> KnobSearch:
    """Three ladders on the curve of a subsample, then at most so many values on that of the whole set."""
    done = KnobSearch(knob, target)
    for _ in range(3):
        if values := done.ladder():
            done.note_ladder(values, [few(value) for value in values])
    for _ in range(passes):
        if (value := done.next()) is not None:
            done.note(value, whole(value))
    return done


def logistic(shift: float) -> Density:
    return lambda value: 1 / (1 + math.exp((math.log(value) - shift) / 2))


@pytest.mark.parametrize("target", [0.05, 0.1, 0.3, 0.5, 0.9])
@pytest.mark.parametrize(
    ("knob", "few", "whole"),
    [
        (SHARE, lambda x: x**3, lambda x: x**2.8),
        (SHARE, lambda x: 0.04 + 0.96 * x**12, lambda x: 0.03 + 0.97 * x**10),
        (FACTOR, logistic(9.0), logistic(9.4)),
    ],
)
def test_a_smooth_knob_takes_three_measurements_of_the_whole_set(
    knob: Knob, target: float, few: Density, whole: Density
) -> None:
    done = search(knob, target, few, whole)
    assert is_matched(1 - target, done.points[done.best()]), done.points


@pytest.mark.parametrize("least", [0.12, 0.5])
def test_out_of_reach_is_measured_once(least: float) -> None:
    done = search(FACTOR, 0.1, lambda _: least, lambda _: least)
    assert len(done.points) == 1 and done.next() is None and done.neighbour() is None


def test_the_end_of_the_range_is_enough() -> None:
    done = search(SHARE, 0.1, lambda x: 0.2 + 0.8 * x, lambda x: 0.2 + 0.8 * x)
    assert done.points == {0.0: 0.2} and done.next() is None


def test_a_step_gives_the_nearer_side() -> None:
    done = search(SHARE, 0.5, lambda x: 0.3 if x < 0.4 else 0.6, lambda x: 0.3 if x < 0.45 else 0.6, passes=5)
    assert done.points[done.best()] == 0.6 and len(done.points) > 2, "both sides were tried"


def test_a_curve_that_bends_back_still_gives_the_nearest() -> None:
    done = search(SHARE, 0.5, lambda x: x, lambda x: x + 0.08 * math.sin(40 * x), passes=4)
    assert is_matched(0.5, done.points[done.best()]), done.points


@pytest.mark.parametrize(("target", "best", "neighbour"), [(0.1, 7, None), (0.109, 8, 7), (0.103, 7, 8), (0.62, 50, None)])
def test_whole_numbers_are_tried_on_both_sides(target: float, best: int, neighbour: int | None) -> None:
    def density(n: float) -> float:
        return 1 - (1 - min(n, 128) / 128) ** 2 - 0.0063

    done = search(BLOCKS, target, density, density)
    assert all(value == int(value) for value in done.points)
    assert (done.best(), done.neighbour()) == (best, neighbour), done.points


def test_below_the_first_whole_number_there_is_no_neighbour() -> None:
    done = search(BLOCKS, 0.01, lambda n: min(1.0, n / 50), lambda n: min(1.0, n / 50))
    assert done.points == {1.0: 0.02} and done.next() is None and done.neighbour() is None
