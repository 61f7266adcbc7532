"""What a cell's samples come to: its accuracy, the comparison with dense in pairs, and whether its row may be shown."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.core.question import QUESTION_SEEN
from harness.stats import paired
from harness.stats.scores import average_p, mean_interval
from harness.study.identity import digest
from harness.study.schema import Status
from harness.study.store import Record, Store

ArmAsRun = tuple[str, bool, str]
"""An arm's id, whether its prompts go through a chat template, and when the question is asked."""
SELF_CHECK = "self-check: "
"""How the reason of a row begins that its arm's self-check stopped."""
LACKS = "lacks"
"""An entry in the summary of a failed cell whose arm could not be built: the part of its identity that is not known for
that."""
SUSPICIOUS = 0.01
"""A method above dense with a p-value below this is gated: dropping attention can hardly help, a bug can."""


@dataclass(frozen=True)
class Comparison:
    """A method beside dense attention on the same samples, each task weighing the same: dense attention's accuracy, the
    accuracy less that with its 95 % interval, and the p-value that both are equally good."""

    dense_accuracy: float
    p_value: float
    difference: float
    difference_low: float
    difference_high: float


@dataclass(frozen=True)
class Score:
    """An accuracy in [0, 1] with its 95 % interval, and the comparison with dense attention where there is one."""

    accuracy: float
    accuracy_low: float
    accuracy_high: float
    comparison: Comparison | None = None

    @property
    def percent(self) -> float:
        """Return the accuracy in per cent."""
        return 100 * self.accuracy

    def as_dict(self) -> dict[str, float]:
        """Return all numbers by name, those of the comparison among them, as records and leaderboards hold them."""
        accuracy = {name: value for name, value in vars(self).items() if name != "comparison"}
        return accuracy | (vars(self.comparison) if self.comparison is not None else {})


def is_baseline(record: Mapping[str, Any]) -> bool:
    """Return whether a cell or latency record belongs to the dense baseline: no sparse kernel ran, at prefill or decode."""
    return record["identity"]["kernel"] is None and "decode" not in record["identity"]


def finished(cells: Iterable[Record]) -> dict[str, Record]:
    """Return the last state of every cell that was ever finished, by id. A cell that is being extended keeps its last
    verdict. One of an arm that could not be built (`LACKS`) goes once there is a cell of that arm with what it lacked."""
    states = {c["cell"]: c for c in cells if c["status"] != Status.RUNNING}
    unbuilt = {name: state for name, state in states.items() if LACKS in state.get("summary", {})}
    if not unbuilt:
        return states
    lacking = {state["summary"][LACKS] for state in unbuilt.values()}
    built = {_without(state, lacks) for state in states.values() if state["cell"] not in unbuilt for lacks in lacking}
    return {
        name: state
        for name, state in states.items()
        if name not in unbuilt or _without(state, state["summary"][LACKS]) not in built
    }


def _without(state: Record, part: str) -> str:
    """Return what a cell is the cell of, without a part of its identity or a knob of that name."""
    identity = {name: value for name, value in state["identity"].items() if name != part}
    knobs = {name: value for name, value in identity.get("knobs", {}).items() if name != part}
    return digest({**identity, "knobs": knobs, "lacks": part})


def arm_as_run(record: Record) -> ArmAsRun:
    """Return which arm a record of a cell or a check is of, and how its prompts were given to the model."""
    return record["arm"], record["identity"]["chat_template"], record["identity"].get("question", QUESTION_SEEN)


def accuracy(samples: Sequence[Record], dense: Sequence[Record] | None, seed: int) -> Score:
    """Return the accuracy of samples and, given dense samples, the paired comparison on those that both have.

    Raises ValueError without samples. seed: of what the comparison draws.
    """
    scores = [s["score"] for s in samples]
    low, high = mean_interval(scores)
    comparison = None
    if dense:
        method_scores, dense_scores = paired_scores(samples, dense)
        if method_scores:
            comparison = compare([method_scores], [dense_scores], seed)
    return Score(statistics.fmean(scores), low, high, comparison)


def compare(method: paired.ScoresByTask, dense: paired.ScoresByTask, seed: int) -> Comparison:
    """Compare a method with dense attention: a list of scores for each task, in pairs. Raises ValueError where scores are not
    in pairs."""
    low, high = paired.difference_interval(method, dense, seed=seed)
    return Comparison(
        dense_accuracy=sum(sum(d) / len(d) for d in dense) / len(dense),
        p_value=average_p(method, dense, seed=seed),
        difference=paired.mean_difference(method, dense),
        difference_low=low,
        difference_high=high,
    )


def unsound(store: Store) -> dict[ArmAsRun, str]:
    """Return why the rows of an arm are gated by its last self-check, for arms where it failed."""
    last = {arm_as_run(r): r for r in store.checks.read()}
    return {key: f"{SELF_CHECK}{r['reason']}" for key, r in last.items() if r["status"] != Status.OK}


def check_of(store: Store, arm: ArmAsRun) -> dict[str, str]:
    """Return the id of an arm's last self-check, as a cell's summary holds it; {} where it never had one."""
    last = {arm_as_run(record): record["check"] for record in store.checks.read()}
    return {"check": last[arm]} if arm in last else {}


def verdict(samples: Sequence[Record], score: Score, check: str = "") -> tuple[str, str]:
    """Return status and reason of a cell with samples: its samples' gates, the reason of the arm's self-check (`check`), then
    the gate on beating dense."""
    gated = [s for s in samples if s["status"] == Status.GATED]
    if gated:
        return Status.GATED, f"{len(gated)} of {len(samples)} samples: {gated[0]['reason']}"
    if check:
        return Status.GATED, check
    against = score.comparison
    if against is not None and score.accuracy > against.dense_accuracy and against.p_value < SUSPICIOUS:
        return Status.GATED, f"above dense by more than noise (p={against.p_value:.2g}): suspected bug"
    return Status.OK, ""


def paired_scores(samples: Sequence[Record], dense: Sequence[Record]) -> tuple[list[float], list[float]]:
    """Return the scores of a method and of dense attention, on the samples that both have."""
    dense_scores = {s["index"]: s["score"] for s in dense}
    pairs = [(s["score"], dense_scores[s["index"]]) for s in samples if s["index"] in dense_scores]
    return [score for score, _ in pairs], [score for _, score in pairs]
