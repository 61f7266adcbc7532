"""Records and leaderboard rows made up for tests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from harness.report.rows import Decode, Knobs, Origin, Row, Times
from harness.study.columns import AVERAGE
from harness.study.identity import ArmIdentity, Cell, Samples, Setting
from harness.study.schema import CellRecord, PerplexityRecord, RunRecord, SampleRecord, Status
from harness.study.store import Store
from harness.study.timing_schema import LatencyRecord
from harness.study.verdict import Score

SETTING = Setting("tiny", "abc", 4096, 0, "float32", "cpu", "sdpa")
DENSE = ArmIdentity(SETTING, "full", 0.0)
SPARSE = ArmIdentity(SETTING, "sieve", 0.9, {"width": 3}, 64, "reference")
DATE = "2026-01-01T00:00:00+00:00"


def cell_of(arm: ArmIdentity, task: str) -> Cell:
    """Return the cell of an arm on a task."""
    return Cell(arm, Samples(task, "1", {"haystack": None}, False))


def record_cell(store: Store, arm: ArmIdentity, task: str, scores: list[float], status: str = Status.OK, **more: Any) -> None:
    """Record a cell with the scores of its samples. more: what isn't as usual, of the cell or of its samples."""
    text, reason = more.get("text", "pydoc"), more.get("reason", "")
    cell = Cell(arm, Samples(task, "1", {"haystack": text}, False)) if "text" in more else cell_of(arm, task)
    cell, summary = more.get("cell", cell), more.get("summary", {})
    sample_status, sample_reason = more.get("sample_status", Status.OK), more.get("sample_reason", "")
    asked = round(1 - (arm.sparsity or 0.0), 6)
    kernel, density = ("sdpa", None) if arm is DENSE else ("reference", more.get("density", asked))
    store.runs.append(RunRecord("r1", DATE, "python -m harness", "c0ffee", {"torch": "2"}, "cpu (x)", "cpu", 1))
    for index, score in enumerate(scores):
        store.samples.append(
            SampleRecord(
                cell.id,
                "r1",
                index,
                "p",
                ["a"],
                score,
                4000,
                1.5,
                density,
                [kernel],
                sample_status,
                sample_reason,
                DATE,
                token_density=more.get("token_density"),
                decode_density=more.get("decode_density"),
            )
        )
    store.cells.append(
        CellRecord(
            cell.id,
            arm.id,
            cell.pair,
            "r1",
            cell.as_dict(),
            status,
            reason,
            DATE,
            arm.knobs,
            text,
            summary,
            neighbour=more.get("neighbour", False),
        )
    )


def record_documents(store: Store, of: ArmIdentity, losses: list[float], status: str = Status.OK, tokens: int = 100) -> None:
    """Record an arm's cell of perplexity, a document for each loss; every second one has twice the tokens."""
    cell = Cell(of, Samples("perplexity", "1", {"text": "books"}, False))
    store.runs.append(RunRecord("r1", DATE, "python -m harness", "c0ffee", {"torch": "2"}, "cpu (x)", "cpu", 1))
    kernel, density = ("sdpa", 1.0) if of.kernel is None else ("reference", 0.1)
    for index, loss in enumerate(losses):
        store.perplexity.append(
            PerplexityRecord(
                cell.id,
                "r1",
                index,
                f"{index}.txt",
                tokens * (1 + index % 2),
                loss,
                tokens,
                0.5 + index,
                density,
                density,
                [kernel],
                Status.OK,
                "",
                DATE,
            )
        )
    store.cells.append(CellRecord(cell.id, of.id, cell.pair, "r1", cell.as_dict(), status, "why", DATE, {}, "books"))


def record_times(store: Store, arm: ArmIdentity) -> None:
    """Record that an arm is four times as fast as dense attention at a density of 0.1."""
    store.latency.append(
        LatencyRecord(
            "l1",
            arm.id,
            "r1",
            arm.as_dict(),
            arm.knobs,
            "cpu (x)",
            "reference",
            0.1,
            1.0,
            3.0,
            4.0,
            3.9,
            4.1,
            16.0,
            "sdpa",
            {"sdpa": 16.0, "sdpa_math": 30.0},
            {},
            5,
            0.01,
            900.0,
            890.0,
            910.0,
            None,
            4000,
            DATE,
        )
    )


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


def row(method: str, sparsity: float, length: int, accuracy: float | None, **more: Any) -> Row:
    """A row whose time falls with its sparsity."""
    return make_row(method, sparsity, length, accuracy, **{"total_ms": 10 * (1.1 - sparsity)} | more)


def decoded(name: str, budget: int, accuracy: float, density: float | None = None, **knobs: Any) -> Row:
    """A row of dense prefill and sparse decoding."""
    decode = Decode(name, {"block_size": 16, "budget": budget, "shared": False} | knobs, ("triton",))
    reached = budget / 4096 if density is None else density
    return row("full", 0.0, 4096, accuracy, decode=decode, decode_density=reached, total_ms=None)
