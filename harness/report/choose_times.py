"""The time of an arm beside dense attention's, with how far it moves: of a layer's attention, or of the whole prefill."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from harness.report.recorded_rows import RecordedArm
from harness.report.rows import Times

TENTH = 10
"""Of the values that noise is taken from, one in so many at either end is left out, as in the percentiles of records."""


@dataclass(frozen=True)
class Timing:
    """Milliseconds of an arm, and of dense attention in the same rounds; None where that was not timed. low, high: the 10th and
    90th percentile of its calls, or how far dense attention's time moves between the rounds of arms where that is more."""

    ms: float
    low: float
    high: float
    dense_ms: float | None

    @property
    def share(self) -> float | None:
        """Return the time as a share of dense attention's."""
        return self.ms / self.dense_ms if self.dense_ms else None

    @property
    def share_range(self) -> tuple[float, float] | None:
        """Return the share at `low` and at `high`."""
        return (self.low / self.dense_ms, self.high / self.dense_ms) if self.dense_ms else None

    def overlaps(self, other: Timing) -> bool:
        """Return whether two shares are not told apart: their ranges have something in common."""
        one, two = self.share_range, other.share_range
        return one is not None and two is not None and one[0] <= two[1] and two[0] <= one[1]


def dense_spread(times: Iterable[Times], by: str) -> tuple[float, float]:
    """Return how far the time of dense attention moves between the rounds of arms, the 10th and the 90th percentile as shares
    of the median: (1, 1) where fewer than two are known."""
    dense = sorted(ms for one in times if (ms := _dense_ms(one, by)))
    if len(dense) < 2:
        return 1.0, 1.0
    middle, last = statistics.median(dense), len(dense) - 1
    return dense[round(last / TENTH)] / middle, dense[round(last - last / TENTH)] / middle


def timing_of(arm: RecordedArm, arms: Sequence[RecordedArm], spread: tuple[float, float], by: str) -> Timing | None:
    """Return the time of an arm, None where it was not timed.

    A prefill with dense attention takes as long as dense attention, whatever decodes after it: its own time, else the median of
    those beside other arms. Where an older record has no dense prefill in turns with its own, the one that its study timed by
    itself takes its place.
    """
    times, dense = arm.times, arm.row.block_size is None
    if times is None:
        beside = [ms for other in arms if other.times is not None and (ms := _dense_ms(other.times, by))]
        return _timing(statistics.median(beside), None, None, spread, None) if dense and beside else None
    if by == "attention" and dense:
        return _timing(times.dense_ms, None, None, spread, None)
    if by == "attention":
        return _timing(times.total_ms, times.total_low, times.total_high, spread, times)
    timing = _timing(times.ttft_ms, times.ttft_low, times.ttft_high, spread, None)
    return timing if dense else replace(timing, dense_ms=times.dense_ttft_ms or _alone(arm, arms))


def _timing(ms: float, low: float | None, high: float | None, spread: tuple[float, float], times: Times | None) -> Timing:
    """Return a time with its range, beside the dense attention of its rounds, or (times None) beside itself."""
    low, high = min(low or ms, ms * spread[0]), max(high or ms, ms * spread[1])
    return Timing(ms, low, high, ms if times is None else times.dense_ms)


def _alone(arm: RecordedArm, arms: Sequence[RecordedArm]) -> float | None:
    """Return the dense prefill that the study of an arm's times has timed by itself, None where it has not."""
    baselines = (other for other in arms if other.row.is_baseline and other.times_study == arm.times_study)
    return next((other.times.ttft_ms for other in baselines if other.times is not None), None)


def _dense_ms(times: Times, by: str) -> float | None:
    return times.dense_ms if by == "attention" else times.dense_ttft_ms
