"""Leaderboard rows made up for tests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from harness.report.rows import Decode, Knobs, Origin, Row, Times
from harness.study.schema import AVERAGE, Status
from harness.study.verdict import Score

TIMES = Times(
    selection_ms=1.0,
    attention_ms=9.0,
    total_ms=10.0,
    dense_ms=11.0,
    density=0.5,
    tflops=1.0,
    ttft_ms=100.0,
    dense_ttft_ms=None,
    peak_mib=None,
)


def make_row(
    method: str,
    sparsity: float | None,
    length: int,
    accuracy: float | None,
    *,
    device: str = "cpu (x)",
    knobs: Knobs | None = None,
    decode: Decode | None = None,
    total_ms: float | None = 10.0,
    group: str | None = None,
    **fields: Any,
) -> Row:
    """Return an average row, of dense attention where the method is "full". total_ms: None for an arm that was not timed.
    fields: those of Row that are not as here."""
    dense = method == "full"
    known = {
        "study": "mine",
        "arm": "arm",
        "model": "tiny",
        "density": None if sparsity is None else 1 - sparsity,
        "task": AVERAGE,
        "samples": 10,
        "tasks": 1,
        "block_size": None if dense else 64,
        "dtype": "float32",
        "seed": 0,
        "status": Status.OK,
    } | fields
    if group is None:
        group = f"{method} {sparsity} {length} {known['block_size']} {knobs} {decode}"
    return Row(
        method=method,
        sparsity=sparsity,
        length=length,
        knobs=knobs or {},
        decode=decode or Decode(),
        group=group,
        origin=Origin(device, None, None, None, None, None, "2026-01-01"),
        score=None if accuracy is None else Score(accuracy, max(0, accuracy - 0.1), min(1, accuracy + 0.1)),
        times=None if total_ms is None else replace(TIMES, total_ms=total_ms),
        **known,
    )
