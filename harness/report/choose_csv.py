"""The CSV of a choice: every arm that was considered, with what the bound makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.report.choose import Candidate, Choice
from harness.report.csv_file import write_csv
from harness.report.row_texts import decode_text, knobs_text
from harness.study.command_settings import as_command_line

COLUMNS = (
    *("rank", "verdict", "reason", "tied", "line", "study", "model", "device", "length", "question", "tasks", "samples"),
    *("method", "knob", "sparsity", "density", "decode", "decode_density", "match"),
    *("loss", "loss_low", "loss_high", "to_first", "to_first_low", "to_first_high"),
    *("time", "time_ms", "time_low", "time_high", "dense_ms", "share", "share_low", "share_high", "times_study", "settings"),
)
"""Columns in order: rank and tied of those that the answer ranks, losses in points, times in milliseconds."""


def write_choices(path: Path, choices: Sequence[Choice]) -> Path:
    """Write the arms of several choices, those that are ranked first. Raises UserError where the file can't be written."""
    return write_csv(path, COLUMNS, (row for choice in choices for row in _rows(choice)))


def _rows(choice: Choice) -> list[list[Any]]:
    ranks = {id(candidate.row): (number, candidate) for number, candidate in enumerate(choice.ranked, 1)}
    ordered = sorted(choice.candidates, key=lambda candidate: ranks.get(id(candidate.row), (len(ranks) + 1,))[0])
    rows = []
    for candidate in ordered:
        rank, shown = ranks.get(id(candidate.row), (None, candidate))
        values = _values(shown) | {"rank": rank, "time": choice.bound.by}
        rows.append([values.get(column) for column in COLUMNS])
    return rows


def _values(candidate: Candidate) -> dict[str, Any]:
    """Return what the columns hold, None where nothing was measured."""
    row, timing = candidate.row, candidate.timing
    values = vars(row) | {
        "verdict": candidate.verdict.value,
        "reason": candidate.reason,
        "tied": "yes" if candidate.tied else None,
        "line": candidate.line,
        "device": row.device,
        "knob": knobs_text(row.knobs),
        "decode": decode_text(row.decode),
        "settings": as_command_line(row.settings),
        "times_study": candidate.arm.times_study or None,
    }
    for name, loss in (("loss", candidate.loss), ("to_first", candidate.to_first)):
        if loss is not None:
            values |= {name: loss.points, f"{name}_low": loss.low, f"{name}_high": loss.high}
    if timing is not None:
        low, high = timing.share_range or (None, None)
        values |= {"time_ms": timing.ms, "time_low": timing.low, "time_high": timing.high, "dense_ms": timing.dense_ms}
        values |= {"share": timing.share, "share_low": low, "share_high": high}
    return values
