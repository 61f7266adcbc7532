"""The verdict on a cell's samples: its accuracy, the comparison with dense in pairs, and whether its row may be shown."""

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
"""The beginning of a row's reason where its arm's self-check stopped it."""
SUSPICIOUS = 0.01
"""A method above dense with a p-value below this is gated: dropping attention can hardly help, a bug can."""


def is_baseline(record: Mapping[str, Any]) -> bool:
    """Return whether a cell or latency record belongs to the dense baseline: no sparse kernel ran, at prefill or decode."""
    return record["identity"]["kernel"] is None and "decode" not in record["identity"]


def finished(cells: Iterable[Record]) -> dict[str, Record]:
    """Return the last state of every cell that was ever finished. A cell that is being extended keeps its last verdict."""
    return {c["cell"]: c for c in cells if c["status"] != Status.RUNNING}


def arm_as_run(record: Record) -> ArmAsRun:
    """Return which arm a record of a cell or a check is of, and how its prompts were given to the model."""
    return record["arm"], record["identity"]["chat_template"], record["identity"].get("question", QUESTION_SEEN)


def accuracy(samples: Sequence[Record], dense_samples: Sequence[Record] | None, seed: int) -> dict[str, Any]:
    """Return the columns of accuracy: the mean score with its 95 % interval and, given dense samples, the
    paired comparison on the samples both have."""
    scores = [s["score"] for s in samples]
    low, high = interval(scores)
    row: dict[str, Any] = {"accuracy": statistics.fmean(scores), "accuracy_low": low, "accuracy_high": high}
    if dense_samples:
        method_scores, dense_scores = paired_scores(samples, dense_samples)
        if method_scores:
            row |= compare([method_scores], [dense_scores], seed)
    return row


def compare(method: paired.Groups, dense: paired.Groups, seed: int) -> dict[str, Any]:
    """Return the columns of a comparison with dense. `method` and `dense` hold a list of scores for each task, in pairs."""
    low, high = paired.difference_interval(method, dense, seed=seed)
    return {
        "dense_accuracy": sum(sum(d) / len(d) for d in dense) / len(dense),
        "p_value": average_p(method, dense, seed=seed),
        "difference": paired.mean_difference(method, dense),
        "difference_low": low,
        "difference_high": high,
    }


def unsound(store: Store) -> dict[ArmAsRun, str]:
    """Return why the rows of an arm are gated, by arm and how its prompts are given: what its last self-check found wrong."""
    last = {arm_as_run(r): r for r in store.checks.read()}
    return {key: f"{SELF_CHECK}{r['reason']}" for key, r in last.items() if r["status"] != Status.OK}


def verdict(samples: Sequence[Record], row: dict[str, Any], check: str = "") -> tuple[str, str]:
    """Return the status and reason of a cell with samples: its samples' gates, what the arm's self-check found (`check`), then
    the gate on beating dense."""
    gated = [s for s in samples if s["status"] == Status.GATED]
    if gated:
        return Status.GATED, f"{len(gated)} of {len(samples)} samples: {gated[0]['reason']}"
    if check:
        return Status.GATED, check
    compared = row.get("dense_accuracy") is not None
    if compared and row["accuracy"] > row["dense_accuracy"] and row["p_value"] < SUSPICIOUS:
        return Status.GATED, f"above dense by more than noise (p={row['p_value']:.2g}): suspected bug"
    return Status.OK, ""


def paired_scores(samples: Sequence[Record], dense_samples: Sequence[Record]) -> tuple[list[float], list[float]]:
    """Return the scores of a method and of dense attention on the samples that both have."""
    dense_scores = {s["index"]: s["score"] for s in dense_samples}
    pairs = [(s["score"], dense_scores[s["index"]]) for s in samples if s["index"] in dense_scores]
    return [score for score, _ in pairs], [dense for _, dense in pairs]
