"""Which values of a knob to try for a density: first many of them on a few prompts, then single ones on all prompts.

A search only proposes values and takes in densities (`harness.arms.calibration` measures them). Densities are compared by their
logarithm, in which most knobs run straight, and knobs with `Knob.log` by theirs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from harness.study.matching import TOLERANCE
from methods.parts.base import Knob

AIM = 0.005
"""How near to the target, relative to it, a search stops."""
RUNGS = 9
"""Values whose densities are taken in one prefill of the subsample, where a method selects before it attends."""
RUNGS_IN_KERNEL = 5
"""The same where the kernel decides, so that each value costs an attention."""
FINE_ENOUGH = 0.1
"""Relative step between the densities on both sides of the target at which another ladder would tell no more."""
_LEAST = 1e-6


class KnobSearch:
    """The search for the value of a knob at which the density is `target`.

    Assumes that density rises with the knob (or falls) more or less; where it doesn't, the nearest that was measured counts.
    curve: [(place, density)] on the subsample, in ascending places; points: the densities on the whole set by value. rungs:
    values of a ladder.
    """

    def __init__(self, knob: Knob, target: float, rungs: int = RUNGS) -> None:
        self.knob, self.target, self.rungs = knob, max(target, _LEAST), rungs
        self.curve: list[tuple[float, float]] = []
        self.points: dict[float, float] = {}
        self._span = self._place(knob.low), self._place(knob.high)

    # -- the subsample -------------------------------------------------------------------------------------------------

    def ladder(self) -> list[float]:
        """Return the values to measure next on the subsample: over the whole range, then ever closer around the target. None
        are left where the curve is fine enough."""
        low, high = self._span
        if self.curve:
            sides = self._sides_of_target()
            if sides is None or self._is_fine(*sides):
                return []
            (low, _), (high, _) = sides
            widened = (high - low) / 4  # with the method at work deeper layers see something else than before
            low, high = max(self._span[0], low - widened), min(self._span[1], high + widened)
        steps = [low + (high - low) * rung / (self.rungs - 1) for rung in range(self.rungs)]
        return sorted({self._value(step) for step in steps})

    def note_ladder(self, values: Sequence[float], densities: Sequence[float]) -> None:
        """Take in the densities of values on the subsample; they replace what is known in their range."""
        rungs = sorted(zip(map(self._place, values), densities, strict=True))
        first, last = rungs[0][0], rungs[-1][0]
        self.curve = sorted([*(point for point in self.curve if not first <= point[0] <= last), *rungs])

    def guess(self) -> float:
        """Return the value at which the curve of the subsample meets the target, or comes nearest."""
        return self._value(self._meet(self.target))

    def _sides_of_target(self, target: float | None = None) -> tuple[tuple[float, float], tuple[float, float]] | None:
        """Return the two neighbouring points of the curve between which it passes the target; None where it doesn't."""
        target = self.target if target is None else target
        for left, right in pairwise(self.curve):
            if min(left[1], right[1]) <= target <= max(left[1], right[1]):
                return left, right
        return None

    def _is_fine(self, left: tuple[float, float], right: tuple[float, float]) -> bool:
        """Return whether no value between two points of the curve needs to be measured on the subsample."""
        if self.knob.whole and self._value(right[0]) - self._value(left[0]) <= 1:
            return True
        return abs(right[1] - left[1]) <= FINE_ENOUGH * self.target

    def _meet(self, target: float) -> float:
        """Return the place where the curve has a density, or that of its nearest point; of equal ones the last on the way
        there."""
        sides = self._sides_of_target(target)
        if sides is not None:
            return _between(*sides, target)
        forward = (self.curve[0][1] < target) == self.knob.rising
        return min(self.curve[:: -1 if forward else 1], key=lambda point: abs(point[1] - target))[0]

    # -- the whole set -------------------------------------------------------------------------------------------------

    def note(self, value: float, density: float) -> None:
        """Take in the density of a value on the whole set."""
        self.points[value] = density

    def best(self) -> float:
        """Return the value whose density on the whole set is nearest to the target, of those measured."""
        return min(self.points, key=lambda value: abs(self.points[value] - self.target))

    def neighbour(self) -> float | None:
        """Return the whole number beside the best one on the other side of the target; None where that wasn't measured, or the
        knob is no whole number."""
        best = self.best()
        sign = self._sign(self.points[best])
        beside = [n for n in (best - 1, best + 1) if n in self.points and self._sign(self.points[n]) not in (0, sign)]
        return beside[0] if self.knob.whole and sign and beside else None

    def next(self) -> float | None:
        """Return the value to measure next on the whole set; None where the search is at its end."""
        if not self.points:
            return self.guess()
        best = self.best()
        aim = TOLERANCE if self.knob.whole else AIM  # a whole number can't come closer by chance
        if abs(self.points[best] - self.target) <= aim * self.target or self.neighbour() is not None:
            return None
        sides = self._measured_sides()
        place = self._outwards(best) if None in sides else self._inwards(*(side for side in sides if side is not None))
        value = self._value(place)
        if self.knob.whole and value in self.points and None not in sides:
            low, high = sorted(side for side in sides if side is not None)
            value = next((n for n in (low + 1, high - 1) if low < n < high and n not in self.points), value)
        return None if value in self.points else value

    def _measured_sides(self) -> tuple[float | None, float | None]:
        """Return the measured values with the nearest densities below and above the target, None where there is none."""
        below = [value for value, density in self.points.items() if density < self.target]
        above = [value for value, density in self.points.items() if density >= self.target]
        return (
            max(below, key=lambda value: self.points[value], default=None),
            min(above, key=lambda value: self.points[value], default=None),
        )

    def _inwards(self, below: float, above: float) -> float:
        """Return a place between two values on both sides of the target: by a straight line, and after that has failed twice,
        as it does on a step, half-way."""
        low, high = sorted((self._place(v), self.points[v]) for v in (below, above))
        if len(self.points) > 3:
            return (low[0] + high[0]) / 2
        margin = (high[0] - low[0]) / 20
        return min(max(_between(low, high, self.target), low[0] + margin), high[0] - margin)

    def _outwards(self, best: float) -> float:
        """Return a place on the target's side of all measured values: where the subsample has what is still missing, and a
        little beyond after the first time."""
        density, place = max(self.points[best], _LEAST), self._place(best)
        missing = (self.target / density) ** (1 + (len(self.points) - 1) / 4)
        here = max(self._density_at(place), _LEAST)
        step = self._meet(here * missing) - place
        rises = (density < self.target) == self.knob.rising
        if (step > 0) != rises or step == 0 or self._is_stuck():  # the curve is flat here, turns, or has a step elsewhere
            least = (self._span[1] - self._span[0]) / 100 * 4 ** (len(self.points) - 1)
            step = max(abs(step), least) * (1 if rises else -1)
        if self.knob.whole and self._value(place + step) == best:
            step = self._place(best + (1 if rises else -1)) - place if self._in_range(best, rises) else 0.0
        return min(max(place + step, self._span[0]), self._span[1])

    def _is_stuck(self) -> bool:
        """Return whether the last measurement brought the density less than half of the way to the target."""
        misses = sorted(abs(density - self.target) for density in self.points.values())
        return len(misses) > 1 and misses[0] > misses[1] / 2

    def _in_range(self, best: float, rises: bool) -> bool:
        return self.knob.low <= best + (1 if rises else -1) <= self.knob.high

    def _density_at(self, place: float) -> float:
        """Return the density of the subsample at a place, on the line between the points around it."""
        for (left, low), (right, high) in pairwise(self.curve):
            if left <= place <= right:
                share = (place - left) / (right - left) if right > left else 0.0
                return math.exp(_log(low) * (1 - share) + _log(high) * share)
        return min(self.curve, key=lambda point: abs(point[0] - place))[1]

    # -- places --------------------------------------------------------------------------------------------------------

    def _place(self, value: float) -> float:
        return math.log(value) if self.knob.log else value

    def _value(self, place: float) -> float:
        value = min(max(math.exp(place) if self.knob.log else place, self.knob.low), self.knob.high)
        return float(round(value)) if self.knob.whole else value

    def _sign(self, density: float) -> int:
        return (density > self.target) - (density < self.target)


def _log(density: float) -> float:
    return math.log(max(density, _LEAST))


def _between(left: tuple[float, float], right: tuple[float, float], target: float) -> float:
    """Return the place between two points (place, density) where a line through the logarithms of densities has the target."""
    low, high = _log(left[1]), _log(right[1])
    if low == high:
        return (left[0] + right[0]) / 2
    return left[0] + (right[0] - left[0]) * (math.log(max(target, _LEAST)) - low) / (high - low)
