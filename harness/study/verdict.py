"""What a cell's samples come to: its accuracy, the comparison with dense in pairs, and whether its row may be shown."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from harness.core.question import QUESTION_SEEN
from harness.stats import paired
from harness.stats.scores import average_p, interval
from harness.study.schema import Status
from harness.study.store import Record, Store

ArmAsRun = tuple[str, bool, str]
"""An arm's id, whether its prompts go through a chat template, and when the question is asked."""
SELF_CHECK = "self-check: "
"""How the reason of a row begins that its arm's self-check stopped."""
SUSPICIOUS = 0.01
"""A method above dense with a p-value below this is gated: dropping attention can hardly help, a bug can."""


def is_baseline(record: Mapping[str, Any]) -> bool:
    """Whether a cell or latency record belongs to the dense baseline: no sparse kernel ran, at prefill or decode."""
    return record["identity"]["kernel"] is None and "decode" not in record["identity"]


def finished(cells: Iterable[Record]) -> dict[str, Record]:
    """The last state of every cell that was ever finished. A cell that is being extended keeps its last verdict."""
    return {c["cell"]: c for c in cells if c["status"] != Status.RUNNING}


def arm_as_run(record: Record) -> ArmAsRun:
    """Which arm a record of a cell or a check is of, and how its prompts were given to the model."""
    return record["arm"], record["identity"]["chat_template"], record["identity"].get("question", QUESTION_SEEN)


def accuracy(mine: Sequence[Record], dense: Sequence[Record] | None, seed: int) -> dict[str, Any]:
    """Accuracy with its interval and, given dense samples, the paired comparison on the samples both have."""
    scores = [s["score"] for s in mine]
    low, high = interval(scores)
    row: dict[str, Any] = {"accuracy": statistics.fmean(scores), "accuracy_low": low, "accuracy_high": high}
    if dense:
        ours, theirs = paired_scores(mine, dense)
        if ours:
            row |= compare([ours], [theirs], seed)
    return row


def compare(method: paired.Groups, dense: paired.Groups, seed: int) -> dict[str, Any]:
    """The columns of a comparison with dense: a list of scores for each task, in pairs."""
    low, high = paired.difference_interval(method, dense, seed=seed)
    return {
        "dense_accuracy": sum(sum(d) / len(d) for d in dense) / len(dense),
        "p_value": average_p(method, dense, seed=seed),
        "difference": paired.mean_difference(method, dense),
        "difference_low": low,
        "difference_high": high,
    }


def unsound(store: Store) -> dict[ArmAsRun, str]:
    """Why the rows of an arm are gated, by arm and how its prompts are given: what its last self-check found."""
    last = {arm_as_run(r): r for r in store.checks.read()}
    return {key: f"{SELF_CHECK}{r['reason']}" for key, r in last.items() if r["status"] != Status.OK}


def verdict(mine: Sequence[Record], row: dict[str, Any], check: str = "") -> tuple[str, str]:
    """Status and reason of a cell with samples: its samples' gates, what the arm's self-check found (`check`), then the gate
    on beating dense."""
    gated = [s for s in mine if s["status"] == Status.GATED]
    if gated:
        return Status.GATED, f"{len(gated)} of {len(mine)} samples: {gated[0]['reason']}"
    if check:
        return Status.GATED, check
    compared = row.get("dense_accuracy") is not None
    if compared and row["accuracy"] > row["dense_accuracy"] and row["p_value"] < SUSPICIOUS:
        return Status.GATED, f"above dense by more than noise (p={row['p_value']:.2g}): suspected bug"
    return Status.OK, ""


def paired_scores(mine: Sequence[Record], dense: Sequence[Record]) -> tuple[list[float], list[float]]:
    """The scores of a method and of dense attention, on the samples that both have."""
    theirs = {s["index"]: s["score"] for s in dense}
    both = [(s["score"], theirs[s["index"]]) for s in mine if s["index"] in theirs]
    return [a for a, _ in both], [b for _, b in both]
