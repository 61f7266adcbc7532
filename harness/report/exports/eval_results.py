"""Hugging Face's `.eval_results/NAME.yaml`: one file an evaluation, for the folder of that name in a model's repository.

https://huggingface.co/docs/hub/eval-results says what the fields mean. The hub shows entries of benchmarks that are registered
there: `dataset.id` must be the id of such a data set.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.report.exports.evaluations import Evaluation, Publication, safe_name, write_text
from harness.report.joined import JoinedRow

FOLDER = ".eval_results"
"""The folder of a model's repository that the hub reads."""
PLACEHOLDER = "OWNER"
"""Owner of a data set whose id was not given: the user fills it in."""


def write(folder: Path, evaluation: Evaluation, publication: Publication) -> list[Path]:
    """Write an evaluation below `folder`, in a folder of its model, and return the path. Raises UserError where it can't be
    written."""
    row = evaluation.row
    name = "_".join(map(safe_name, (evaluation.tasks_name, str(row.length), row.method, evaluation.id)))
    path = folder / safe_name(evaluation.model(publication)) / FOLDER / f"{name}.yaml"
    entries = (_entry(evaluation, publication, task, columns) for task, _, columns in evaluation.named)
    return [write_text(path, "".join(entries))]


def _entry(evaluation: Evaluation, publication: Publication, task: str, columns: JoinedRow) -> str:
    """Return one entry: every text is quoted, as JSON quotes it, which YAML reads."""
    return "".join(_lines(evaluation, publication, task, columns))


def _lines(evaluation: Evaluation, publication: Publication, task: str, columns: JoinedRow) -> Iterator[str]:
    dataset = publication.dataset or f"{PLACEHOLDER}/{evaluation.benchmark}"
    value = columns["perplexity"] if evaluation.is_perplexity else 100 * columns["accuracy"]
    yield f"- dataset:\n    id: {_text(dataset)}\n    task_id: {_text(f'{task}_{evaluation.row.length}')}\n"
    yield f"  value: {round(value, 4)}\n"
    yield f"  date: {_text(evaluation.time.isoformat())}\n"
    if publication.url is not None:
        yield f"  source:\n    url: {_text(publication.url)}\n"
    yield f"  notes: {_text(notes(columns))}\n"


def notes(columns: JoinedRow) -> str:
    """Return in a line how a value was measured: method, density, length, device, samples and interval."""
    parts = [f"{columns['method']} attention" + (f" ({columns['knobs']})" if columns["knobs"] else "")]
    if columns["density"] is not None and not columns["is_dense"]:
        parts.append(f"density {columns['density']:.3f}")
    parts.append(f"{columns['length']} tokens")
    if columns["question"] not in (None, "seen"):
        parts.append(f"question {columns['question']}")
    if columns["accuracy_low"] is not None:
        parts.append(f"95 % interval {100 * columns['accuracy_low']:.1f} to {100 * columns['accuracy_high']:.1f}")
    parts += [f"{columns['samples']} samples", columns["device"]]
    if columns["is_bound"]:
        parts.append("a bound: it looks at what no usable method can")
    return ", ".join(parts)


def _text(value: Any) -> str:
    return json.dumps(str(value), ensure_ascii=False)
