"""What longer training of gates is worth: accuracy by the tokens of each training of a study, and `gate_curve.csv`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.report.csv_file import write_csv
from harness.report.rows import Row
from harness.study.columns import AVERAGE
from harness.study.matching import Match
from harness.study.store import Record, Store

NAME = "gates"
"""The knob of a method that names one of several trainings of its weights."""


@dataclass(frozen=True)
class Training:
    """A training that a study recorded to its last step.

    text: the kind of rows that it learnt from; text_id: a hash of the files, or the name, of what they were drawn from.
    tokens: seen by its last step, each time that they were. loss: KL in nats, the mean over the last tenth of its steps. seed:
    of the weights that it began with, and of the text.
    """

    model: str
    name: str
    text: str
    text_id: str
    lr: float
    seed: int
    steps: int
    tokens: int
    loss: float


@dataclass(frozen=True)
class CurvePoint:
    """A training and the average row of an arm that ran with its weights; the columns of gate_curve.csv, in this order.

    sparsity: what the arm was asked for at prefill, if anything; match: whether it is there.
    """

    model: str
    method: str
    training: str
    text: str
    text_id: str
    lr: float
    training_seed: int
    steps: int
    tokens: int
    loss: float
    device: str
    length: int
    samples_seed: int
    samples: int
    sparsity: float | None
    density: float | None
    match: Match | None
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    status: str


COLUMNS = tuple(CurvePoint.__dataclass_fields__)
"""Columns of gate_curve.csv, in order."""


def trainings(store: Store) -> list[Training]:
    """Return the named trainings of a study that were recorded to the end, in the order in which they began. Raises RecordError
    for corrupt records."""
    by_training: dict[str, dict[int, Record]] = {}
    for record in store.gate_steps.read():
        by_training.setdefault(record["training"], {})[record["step"]] = record
    return [
        _training(about, steps)
        for steps in by_training.values()
        if 0 in steps and "training_name" in (about := steps[0]["about"] or {}) and len(steps) == about["steps"]
    ]


def _training(about: dict[str, Any], steps: dict[int, Record]) -> Training:
    ordered = [steps[number] for number in sorted(steps)]
    last = ordered[-max(1, len(ordered) // 10) :]
    return Training(
        model=about["model"],
        name=about["training_name"],
        text=about["rows"],
        text_id=about.get("text") or "",
        lr=about["lr"],
        seed=about["seed"],
        steps=about["steps"],
        tokens=ordered[-1]["tokens"],
        loss=sum(step["loss"] for step in last) / len(last),
    )


def curve_points(store: Store, rows: Sequence[Row]) -> list[CurvePoint]:
    """Return a point for each average row whose weights are of a training of the study, by model, seed of the samples, length,
    sparsity and tokens."""
    by_name = {(training.model, training.name): training for training in trainings(store)}
    points = []
    for row in rows:
        training = by_name.get((row.model, str(row.knobs.get(NAME))))
        if row.task != AVERAGE or row.score is None or training is None:
            continue
        points.append(
            CurvePoint(
                model=row.model,
                method=row.method,
                training=training.name,
                text=training.text,
                text_id=training.text_id,
                lr=training.lr,
                training_seed=training.seed,
                steps=training.steps,
                tokens=training.tokens,
                loss=training.loss,
                device=row.device,
                length=row.length,
                samples_seed=row.seed,
                samples=row.samples or 0,
                sparsity=row.sparsity,
                density=row.density,
                match=row.match,
                accuracy=row.score.accuracy,
                accuracy_low=row.score.accuracy_low,
                accuracy_high=row.score.accuracy_high,
                status=row.status,
            )
        )
    return sorted(points, key=_order)


def _order(point: CurvePoint) -> tuple[Any, ...]:
    recipe = point.text, point.text_id, point.lr, point.tokens, point.training_seed
    return point.model, point.samples_seed, point.length, point.sparsity or 0.0, *recipe


def write_points(path: Path, points: Sequence[CurvePoint]) -> Path:
    """Write gate_curve.csv. Raises UserError where it can't be written."""
    return write_csv(path, COLUMNS, ([getattr(point, column) for column in COLUMNS] for point in points))
