"""Knob values that ship beside a model's gates: the records of searches, taken where everything is as it was in the search.

A record counts under its key, the hash of model, weights of the method, dtype, device type, kernels, length, seed, knobs, tasks
and text, and for as many prompts as it was found on: whatever differs is searched anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from harness.core.errors import UserError
from harness.core.files import write_atomically
from harness.study.identity import digest
from harness.study.lines import LineError, parse_line, to_line
from harness.study.schema import CalibrationRecord
from harness.study.store import Record

FILE = "knob-values.jsonl"
"""The file in the folder of a model's gates (`arms.weights.weights_folder`), lines as in calibrations.jsonl."""
_REPLACED = ("model_hash", "weights_hash")
"""What differs between a model, or its gates, and the ones in whose place they came."""


def shipped_record(folder: Path, key: str) -> CalibrationRecord | None:
    """Return the record of this key in the folder of a model's gates, or None. Raises UserError for a broken file."""
    record = next((record for record in read_shipped(folder / FILE) if record["calibration"] == key), None)
    return None if record is None else CalibrationRecord(**record)


def read_shipped(path: Path) -> list[Record]:
    """Return the records in a file, none where there is no file. Raises UserError for a broken one, and for a record whose key
    is not that of its identity."""
    if not path.exists():
        return []
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror or error}): restore it, or move it aside") from error
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = parse_line(line, "calibrations")
        except LineError as error:
            raise UserError(f"{path}:{number}: {error}; write the file again (job=densities job.out={path.parent})") from None
        if digest(record["identity"]) != record["calibration"]:
            raise UserError(
                f"{path}:{number}: its key is not that of its identity; write the file again (job=densities "
                f"job.out={path.parent})"
            )
        records.append(record)
    return records


def ship(records: Iterable[Record], folder: Path) -> tuple[Path, int]:
    """Write the records of searches into the file of a folder, and return its path and how many it holds. What it has of others
    stays, but for those of a model, or of gates, in whose place these came. Raises UserError where it can't be written."""
    path = folder / FILE
    new = [record for record in records if record.get("tasks")]
    replaced = {_without_weights(record) for record in new}
    untouched = [record for record in read_shipped(path) if _without_weights(record) not in replaced]
    rows = sorted([*untouched, *new], key=lambda record: str(record["calibration"]))
    write_atomically(path, lambda file: file.write(b"".join(map(to_line, rows))))
    return path, len(rows)


def _without_weights(record: Mapping[str, Any]) -> str:
    return digest({name: value for name, value in record["identity"].items() if name not in _REPLACED})
