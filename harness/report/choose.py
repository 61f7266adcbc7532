"""Which method to use under one bound: the arms of a model and a length on one device and one set of tasks, judged and ranked.

With a bound on the loss the least time comes first, with one on the density or the time the least loss. A time is ranked as its
share of dense attention's of the same rounds, so that two studies of a device compare.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Literal

from harness.report.choose_times import Timing, dense_spread, timing_of
from harness.report.density_match import effective_density
from harness.report.front import is_bound_row
from harness.report.lines import line_names, rows_by_line
from harness.report.recorded_rows import RecordedArm, TaskSet
from harness.report.rows import Row
from harness.stats.paired import difference_interval, mean_difference
from harness.study.matching import Match
from harness.study.schema import Status

By = Literal["attention", "ttft"]
"""The time that counts: of a layer's attention with its selection, or of the whole prefill."""


class Verdict(StrEnum):
    """What the bound makes of an arm. WITHIN: shown to be within it, at 95 % or by 90 % of the calls. NOT_SHOWN: within it as
    measured, with an interval that is not. OUTSIDE: not within it as measured. NOT_MEASURED: a number is missing. IS_BOUND:
    looks at what no usable method can. OFF_DENSITY: not at the density that it was asked for. HELD_BACK: failed, or gated."""

    WITHIN = "within"
    NOT_SHOWN = "not shown"
    OUTSIDE = "outside"
    NOT_MEASURED = "not measured"
    IS_BOUND = "a bound"
    OFF_DENSITY = "off density"
    HELD_BACK = "held back"


@dataclass(frozen=True)
class Bound:
    """What the user can afford. of: "loss" in points of accuracy, "density" as a share of blocks, or "ms" of the time `by`."""

    of: Literal["loss", "density", "ms"]
    most: float
    by: By = "attention"

    @property
    def ranks_times(self) -> bool:
        """Return whether the least time comes first; else the least loss does."""
        return self.of == "loss"


@dataclass(frozen=True)
class Loss:
    """Points of accuracy lost to dense attention on the same prompts, with the 95 % interval."""

    points: float
    low: float
    high: float


@dataclass(frozen=True)
class Candidate:
    """An arm under the bound. line: its method and variant; name: its own, with the full rows that it had. reason: of a verdict
    that the numbers don't say. tied: whether it is not told apart from the first. to_first: points lost to the first on the
    prompts that both have, where the least loss is ranked."""

    arm: RecordedArm
    line: str
    name: str
    loss: Loss | None
    timing: Timing | None
    verdict: Verdict
    reason: str = ""
    tied: bool = False
    to_first: Loss | None = None

    @property
    def row(self) -> Row:
        """Return the row of its average."""
        return self.arm.row


@dataclass(frozen=True)
class Choice:
    """The answer for one device and set of tasks.

    ranked: those shown to be within the bound, the best arm of a line alone, best first; dense attention is one of them where
    the bound allows it. not_shown: of each line the best that is within the bound but not shown to be, best first.
    candidates: all arms.
    """

    bound: Bound
    device: str
    candidates: tuple[Candidate, ...]
    ranked: tuple[Candidate, ...]
    not_shown: tuple[Candidate, ...]

    @property
    def first(self) -> Candidate | None:
        """Return the method to use; None where nothing is shown to be within the bound."""
        return self.ranked[0] if self.ranked else None

    @property
    def tied(self) -> list[Candidate]:
        """Return what is not told apart from the first."""
        return [candidate for candidate in self.ranked if candidate.tied]

    @property
    def timed(self) -> int:
        """Return how many arms have both a loss and a time."""
        return sum(candidate.loss is not None and candidate.timing is not None for candidate in self.candidates)

    @property
    def studies(self) -> list[str]:
        """Return the studies that the arms are from."""
        names = {candidate.row.study for candidate in self.candidates}
        return sorted(names | {candidate.arm.times_study for candidate in self.candidates} - {""})


def choices(arms: Sequence[RecordedArm], bound: Bound) -> list[Choice]:
    """Return the answer for every device and set of tasks, that with most timed arms first. Arms that were only timed are in
    each of their device."""
    panels: dict[tuple[str, TaskSet], list[RecordedArm]] = defaultdict(list)
    for arm in arms:
        if arm.tasks:
            panels[arm.row.device, arm.task_set].append(arm)
    timed_only = [arm for arm in arms if not arm.tasks]
    answers = [
        _choice([*members, *(arm for arm in timed_only if arm.row.device == device)], bound)
        for (device, _), members in panels.items()
        if not all(arm.row.is_baseline for arm in members)  # nothing to choose among
    ]
    return sorted(answers, key=lambda choice: (-choice.timed, -len(choice.candidates), choice.device))


def _choice(arms: Sequence[RecordedArm], bound: Bound) -> Choice:
    rows = [arm.row for arm in arms]
    names = line_names(rows)
    lines = {id(row): line for line, members in rows_by_line(rows, asked=True).items() for row in members}
    spread = dense_spread([arm.times for arm in arms if arm.times is not None], bound.by)
    candidates = []
    for arm in arms:
        timing, loss = timing_of(arm, arms, spread, bound.by), _loss(arm.row)
        verdict, reason = _verdict(arm.row, loss, timing, bound)
        name = names[id(arm.row)]
        candidates.append(Candidate(arm, lines[id(arm.row)], name, loss, timing, verdict, reason))
    ranked = _best_of_lines(candidates, Verdict.WITHIN, bound)
    if ranked:
        ranked = [ranked[0], *(_beside_first(candidate, ranked[0], bound) for candidate in ranked[1:])]
    not_shown = _best_of_lines(candidates, Verdict.NOT_SHOWN, bound)
    return Choice(bound, arms[0].row.device, tuple(candidates), tuple(ranked), tuple(not_shown))


def _loss(row: Row) -> Loss | None:
    """Return what a row loses to dense attention, which loses nothing to itself; None where that was not measured."""
    if row.score is None:
        return None
    if row.is_baseline:
        return Loss(0.0, 0.0, 0.0)
    beside = row.score.comparison
    return (
        None
        if beside is None
        else Loss(*(-100 * d for d in (beside.difference, beside.difference_high, beside.difference_low)))
    )


def _verdict(row: Row, loss: Loss | None, timing: Timing | None, bound: Bound) -> tuple[Verdict, str]:
    """Return what the bound makes of a row, and why where its numbers don't say that."""
    if is_bound_row(row):
        return Verdict.IS_BOUND, "it looks at what no usable method can"
    if row.match == Match.OFF_DENSITY:
        return Verdict.OFF_DENSITY, f"asked for density {1 - (row.sparsity or 0.0):.3g}"
    if row.status != Status.OK:
        return Verdict.HELD_BACK, row.reason
    if loss is None:
        return Verdict.NOT_MEASURED, "loss"
    if bound.of == "density":
        density = effective_density(row)
        if density is None:
            return Verdict.NOT_MEASURED, "density"
        return (Verdict.WITHIN if density <= bound.most else Verdict.OUTSIDE), ""
    value, high = (loss.points, loss.high) if timing is None or bound.of == "loss" else (timing.ms, timing.high)
    if bound.of == "loss" and value > bound.most:
        return Verdict.OUTSIDE, ""
    if timing is None or (bound.ranks_times and timing.share is None):
        return Verdict.NOT_MEASURED, "time" if timing is None else "dense attention's time"
    if value > bound.most:
        return Verdict.OUTSIDE, ""
    return (Verdict.WITHIN if high <= bound.most else Verdict.NOT_SHOWN), ""


def _best_of_lines(candidates: Iterable[Candidate], verdict: Verdict, bound: Bound) -> list[Candidate]:
    """Return the best arm of each line with a verdict, best first."""
    best: dict[str, Candidate] = {}
    for candidate in sorted((c for c in candidates if c.verdict == verdict), key=lambda c: _rank(c, bound)):
        best.setdefault(candidate.line, candidate)
    return list(best.values())


def _rank(candidate: Candidate, bound: Bound) -> tuple[float, float, float]:
    """Return what is least for the best: the time or the loss, the other after it, and the density of what is equal in both.
    What seems to gain on dense attention loses nothing, as it does; it stands before a method that takes as long."""
    share = candidate.timing.share if candidate.timing is not None and candidate.timing.share is not None else float("inf")
    loss = max(0.0, candidate.loss.points) if candidate.loss is not None else float("inf")
    density = 0.0 if candidate.row.is_baseline else candidate.row.density or 1.0
    return (share, loss, density) if bound.ranks_times else (loss, share, density)


def _beside_first(candidate: Candidate, first: Candidate, bound: Bound) -> Candidate:
    """Return a candidate with whether it is told apart from the first, in what is ranked."""
    if bound.ranks_times:
        tied = candidate.timing is not None and first.timing is not None and candidate.timing.overlaps(first.timing)
        return replace(candidate, tied=tied)
    to_first = _loss_to(candidate.arm, first.arm)
    return replace(candidate, to_first=to_first, tied=to_first is not None and to_first.low <= 0 <= to_first.high)


def _loss_to(arm: RecordedArm, first: RecordedArm) -> Loss | None:
    """Return what an arm loses to another on the prompts that both have, each task weighing the same; None where a task has
    none."""
    partners = {(row.task, row.samples_seen): row.answers for row in first.tasks}
    scores, others = [], []
    for row in arm.tasks:
        answers = partners.get((row.task, row.samples_seen), {})
        common = sorted(row.answers.keys() & answers.keys())
        if not common:
            return None
        scores.append([row.answers[index].score for index in common])
        others.append([answers[index].score for index in common])
    low, high = difference_interval(scores, others, seed=arm.row.seed)
    return Loss(-100 * mean_difference(scores, others), -100 * high, -100 * low)


def discordance(candidate: Candidate, candidates: Iterable[Candidate]) -> float | None:
    """Return the mean absolute difference of an arm's samples to dense attention's, each task weighing the same; None where
    dense attention's answers are not among the candidates."""
    tasks = [row for other in candidates if other.row.is_baseline for row in other.arm.tasks]
    dense = {(row.task, row.samples_seen): row.answers for row in tasks}
    apart = []
    for row in candidate.arm.tasks:
        answers = dense.get((row.task, row.samples_seen), {})
        common = row.answers.keys() & answers.keys()
        if not common:
            return None
        apart.append(statistics.fmean(abs(row.answers[index].score - answers[index].score) for index in common))
    return statistics.fmean(apart) if apart else None
