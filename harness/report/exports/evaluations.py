"""What every export is made of: an arm on a set of tasks at one length, with the columns of its rows and its samples."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from harness.core.errors import UserError
from harness.core.files import write_atomically
from harness.report.csv_file import value_text
from harness.report.joined import JoinedRow, joined_rows
from harness.report.leaderboard import rows_of
from harness.report.rows import Row
from harness.report.significance import MARGIN
from harness.report.study_records import read_study
from harness.study.columns import AVERAGE, PERPLEXITY
from harness.study.schema import Status
from harness.study.store import Record, Store

DISTRIBUTION = "sparse-attention-harness"
"""The name of this project where it is installed, and in files that say what measured."""
UNSAFE = re.compile(r"[^\w.+-]+")
"""What no name of a file holds."""
LONGEST = 60
"""Letters of a part of a name: file systems take names of 255 bytes, and letters may have four."""
FACTS = (
    *("method", "knobs", "is_bound", "is_dense", "decode", "question", "block_size", "seed"),
    *("requested_density", "density", "match", "token_density", "decode_density", "kept_mass", "full_rows"),
    *(
        "kernel",
        "dense_kernel",
        "dtype",
        "device",
        "total_ms",
        "selection_ms",
        "attention_ms",
        "dense_ms",
        "speedup",
        "pct_ideal",
    ),
    *("ttft_ms", "dense_ttft_ms", "ttft_speedup", "peak_mib", "decode_tokens_s", "decode_speedup"),
    *("dense_accuracy", "difference", "difference_low", "difference_high", "p_value", "p_holm", "noninferior"),
    *("dense_perplexity", "perplexity_ratio", "perplexity_ratio_low", "perplexity_ratio_high"),
    *("reason", "study", "arm", "group", "cell", "commit"),
)
"""Columns of a row that an export carries where its format has no place of their own for them."""


@dataclass(frozen=True)
class Publication:
    """What an export says that records don't: the model's id on the hub, the organisation that develops a model without one,
    who measured, the benchmark's data set on the hub, and the address of the source. None where it is not given."""

    model: str | None = None
    developer: str = "local"
    organization: str | None = None
    dataset: str | None = None
    url: str | None = None


@dataclass(frozen=True)
class Evaluation:
    """An arm on a set of tasks at one length. row, columns: its average, or its row of perplexity. tasks: the rows of single
    tasks behind it with their columns, of perplexity its own. samples: the records of the samples of each cell."""

    row: Row
    columns: JoinedRow
    tasks: Sequence[tuple[Row, JoinedRow]]
    samples: Mapping[str, Sequence[Record]]

    @property
    def is_perplexity(self) -> bool:
        """Return whether it is one of perplexity, which has documents and no scores."""
        return self.row.task == PERPLEXITY

    @property
    def id(self) -> str:
        """Return what tells it from others of its study."""
        return self.row.group or self.row.cell

    @property
    def benchmark(self) -> str:
        """Return the benchmark of its tasks; of tasks that are of none any more, a word for that."""
        return self.columns["benchmark"] or "other"

    @property
    def tasks_name(self) -> str:
        """Return what its tasks are called together."""
        return self.columns["task_set"] or self.row.task

    @property
    def named(self) -> list[tuple[str, Row, JoinedRow]]:
        """Return the average and the rows behind it with their names; without the average where it is of one task of that
        name, or of documents."""
        tasks = [(row.task, row, columns) for row, columns in self.tasks]
        lone = self.tasks_name in {name for name, *_ in tasks}
        return tasks if lone else [(self.tasks_name, self.row, self.columns), *tasks]

    @property
    def time(self) -> datetime:
        """Return when its last answer was given. Raises UserError for a recorded date that is none."""
        try:
            time = datetime.fromisoformat(self.row.origin.date)
        except ValueError:
            raise UserError(f"study={self.row.study}: a record has the date {self.row.origin.date!r}, which is none") from None
        return time if time.tzinfo else time.replace(tzinfo=UTC)

    def model(self, publication: Publication) -> str:
        """Return the id of its model: as given, else as recorded."""
        return publication.model or self.row.model


def evaluations(store: Store, margin: float = MARGIN) -> tuple[list[Evaluation], int]:
    """Return what a study measured that may be shown, and how many averages and rows of perplexity are left out: they failed,
    are held back or have no finite number. Raises RecordError for corrupt records."""
    records = read_study(store)
    rows = rows_of(records, margin)
    pairs = list(zip(rows, joined_rows(rows), strict=True))
    behind: dict[str | None, list[tuple[Row, JoinedRow]]] = {}
    for row, columns in pairs:
        if row.task not in ("", AVERAGE):
            behind.setdefault(row.group or row.cell, []).append((row, columns))
    whole = [(row, columns) for row, columns in pairs if row.task in (AVERAGE, PERPLEXITY)]
    shown = [
        Evaluation(row, columns, behind.get(row.group or row.cell, []), records.samples)
        for row, columns in whole
        if row.status == Status.OK and (row.score is not None or _is_finite(row))
    ]
    return shown, len(whole) - len(shown)


def _is_finite(row: Row) -> bool:
    """Return whether a row has a perplexity that files can hold: JSON has no infinity, which large losses come to."""
    return row.perplexity is not None and math.isfinite(row.perplexity.perplexity)


def facts(columns: JoinedRow, names: Sequence[str] = FACTS) -> dict[str, str]:
    """Return what columns of a row hold as texts, those that hold nothing left out."""
    return {name: value_text(columns[name]) for name in names if columns[name] is not None}


def command_of(evaluation: Evaluation) -> str:
    """Return the command that measures an evaluation again."""
    return f"python -m harness {evaluation.columns['settings']}"


def project_version() -> str:
    """Return the version of this project; "unknown" where it runs from a checkout that is not installed."""
    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:
        return "unknown"


def safe_name(text: str) -> str:
    """Return the first letters of a text as a name of a file or folder: what none may hold becomes _."""
    return UNSAFE.sub("_", text)[:LONGEST].strip("._") or "_"


def write_json(path: Path, value: Any) -> Path:
    """Write a value as JSON, in one step. Returns `path`. Raises UserError where it can't be written."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    return write_text(path, f"{text}\n")


def write_text(path: Path, text: str) -> Path:
    """Write a text, in one step. Returns `path`. Raises UserError where it can't be written."""
    return write_atomically(path, lambda file: file.write(text.encode(errors="backslashreplace")))
