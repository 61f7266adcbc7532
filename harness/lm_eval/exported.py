"""What the task files that `job=export` writes call: reading their samples, and scoring as this harness does."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from harness.core.errors import UserError
from harness.tasks import registry
from harness.tasks.sample import Sample

SPLIT = "test"


def load(path: Path) -> dict[str, Any]:
    """Return the samples of a file as lm-eval takes a data set: {"test": rows}. Raises UserError where it is missing, or a line
    is no sample."""
    from datasets import Dataset

    if not path.is_file():
        raise UserError(f"{path} is missing: write it again with `python -m harness job=export`")
    lines = path.read_bytes().splitlines()  # of text, prose could hold separators of lines
    for number, line in enumerate(lines, 1):
        try:
            msgspec.json.decode(line, type=Sample)
        except (msgspec.DecodeError, RecursionError) as error:
            again = "write it again with `python -m harness job=export`"
            raise UserError(f"{path}:{number}: no sample of a task ({error}): {again}") from error
    return {SPLIT: Dataset.from_list([json.loads(line) for line in lines])}


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Return {"score": the task's own score in [0, 1]} of one prediction."""
    fields: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in doc.items()}
    sample = Sample(**fields)
    return {"score": registry.get(sample.task).score(results[0], sample)}
