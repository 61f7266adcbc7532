"""Arms of one model and length over several studies: their averages, the single tasks behind them, and their times."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from harness.report.leaderboard import rows_of
from harness.report.rows import Row, Times
from harness.report.study_records import is_perplexity, read_study
from harness.study.columns import AVERAGE
from harness.study.store import Record, Store

TaskSet = frozenset[tuple[str, str]]
"""Tasks, each with what is equal for all that saw its samples (`Row.samples_seen`)."""
ModelLength = tuple[str, int]
"""The name of a model and a length in tokens."""


@dataclass(frozen=True)
class RecordedArm:
    """An arm on a set of tasks, as one study measured it.

    row: its average, or the row of its times alone. tasks: the rows of single tasks behind it, none of an arm that was only
    timed. times: its own, or those of the same arm on the same device in another study, times_study.
    """

    row: Row
    tasks: tuple[Row, ...] = ()
    times: Times | None = None
    times_study: str = ""

    @property
    def task_set(self) -> TaskSet:
        """Return which tasks it is of, each with what says which samples it has and of which weights: two models of one name
        are still two."""
        return frozenset((row.task, row.samples_seen) for row in self.tasks)

    @property
    def on_device(self) -> tuple[str, str]:
        """Return the arm's id and its device."""
        return self.row.arm, self.row.device


def studies_in(results: Path) -> list[Store]:
    """Return the studies of a folder that have records, by name."""
    folders = sorted(results.iterdir()) if results.is_dir() else []
    return [Store(folder) for folder in folders if (folder / "records").is_dir()]


def measured_in(store: Store) -> set[ModelLength]:
    """Return the models and lengths that a study has accuracies or times of. Raises RecordError for corrupt records."""
    cells = [cell for cell in store.cells.read() if not is_perplexity(cell)]
    return {_model_length(record) for record in [*cells, *store.latency.read()]}


def recorded_arms(stores: Iterable[Store], measured: ModelLength) -> list[RecordedArm]:
    """Return the arms of one model and length over studies, each once for a device, a set of tasks and a time of the question:
    of several studies that of most samples, then the latest. Raises RecordError for records that can't be read whole."""
    once: dict[tuple[object, ...], RecordedArm] = {}
    timed: dict[tuple[str, str], RecordedArm] = {}
    for arm in sorted((arm for store in stores for arm in _arms_of(store, measured)), key=_weight):
        once[arm.on_device, arm.row.question, arm.task_set] = arm
        if arm.row.times is not None:
            timed[arm.on_device] = arm
    scored = {arm.on_device for arm in once.values() if arm.tasks}
    arms = [arm for arm in once.values() if arm.tasks or arm.on_device not in scored]
    return [_with_times(arm, timed.get(arm.on_device)) for arm in arms]


def _arms_of(store: Store, measured: ModelLength) -> list[RecordedArm]:
    """Return the arms of one study; groups of their rows are called by it too, as another study may have the same."""
    records = read_study(store)
    cells = {key: cell for key, cell in records.cells.items() if _model_length(cell) == measured and not is_perplexity(cell)}
    timings = {key: timing for key, timing in records.timings.items() if _model_length(timing) == measured}
    rows = rows_of(replace(records, cells=cells, timings=timings, masses={}))
    by_group: dict[str | None, list[Row]] = defaultdict(list)
    for row in rows:
        if row.task not in (AVERAGE, ""):
            by_group[row.group].append(replace(row, group=f"{row.study}/{row.group}"))
    return [
        RecordedArm(replace(row, group=f"{row.study}/{row.group or row.arm}"), tuple(by_group[row.group] if row.task else ()))
        for row in rows
        if row.task in (AVERAGE, "")
    ]


def _model_length(record: Record) -> ModelLength:
    return record["identity"]["model"], record["identity"]["length"]


def _weight(arm: RecordedArm) -> tuple[bool, int, str]:
    """Return what is larger for the one that counts of two that are the same arm."""
    return arm.row.score is not None, arm.row.samples or 0, arm.row.origin.date


def _with_times(arm: RecordedArm, timed: RecordedArm | None) -> RecordedArm:
    """Return an arm with its own times, else those of the same arm in another study."""
    source = arm if arm.row.times is not None else timed
    return arm if source is None else replace(arm, times=source.row.times, times_study=source.row.study)
