"""The rows of a study of kernels, made from its records alone, and its leaderboard.csv."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.core.knob_names import knob_names, with_texts
from harness.core.method_facts import method_facts
from harness.measure.kernel_speed.cases import BLOCK_MAP, FULL, SELECTION, SHARED, SPARSE
from harness.report.csv_file import write_csv
from harness.report.row_texts import knobs_text
from harness.report.rows import Knobs, Origin
from harness.report.study_records import origin_of
from harness.study.columns import KERNEL_COLUMNS
from harness.study.command_settings import as_command_line, case_settings
from harness.study.full_rows import LAST, requested_and_full
from harness.study.identity import digest
from harness.study.integrity import check_study
from harness.study.matching import Match, match_of
from harness.study.store import Record, Store

OPS = (FULL, BLOCK_MAP, SELECTION, SPARSE)
"""The order of rows within a length."""


@dataclass(frozen=True)
class KernelTimes:
    """Times of a case in milliseconds a call, medians; None for what has none.

    selection_ms, attention_ms: of its two steps. total_ms: both timed as one; of dense attention and of a block map the call.
    total_low, total_high: 10th and 90th percentile of `repeats` calls. dense_ms: of the fastest dense kernel of the same
    process. tflops, gb_s: reached by the attention.
    """

    selection_ms: float | None = None
    attention_ms: float | None = None
    total_ms: float | None = None
    total_low: float | None = None
    total_high: float | None = None
    repeats: int | None = None
    speedup: float | None = None
    attention_speedup: float | None = None
    pct_ideal: float | None = None
    attention_pct_ideal: float | None = None
    tflops: float | None = None
    gb_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class KernelRow:
    """A case on a device. `harness.study.columns.KERNEL_COLUMNS` says what the columns mean; fields of the same name mean the
    same, `shape` is the column `model`, `case` the column `cell`. knobs: of `method`, those that this job gives it where its
    defaults have no formula for a sparsity."""

    study: str
    shape: str
    method: str
    knobs: Knobs
    settings: tuple[str, ...]
    kernel: str
    sparsity: float | None
    length: int
    batch: int
    block_size: int | None
    seed: int
    dtype: str
    phase: str
    op: str
    index: str
    selection: str
    shared: bool | None
    q_block: int | None
    k_block: int | None
    haystack: str
    density: float | None
    error: float | None
    dense_ms: float | None
    dense_kernel: str | None
    peak_mib: float | None
    match: Match | None
    timing: str
    case: str
    status: str
    reason: str
    origin: Origin
    times: KernelTimes
    full_rows: int | None = None

    @property
    def index_name(self) -> str:
        """Return what the index is called, or the method where there is none: with the knobs that the method ran with here, and
        how many last rows were full in an index of no method."""
        drawn = [f"{LAST} {self.full_rows}"] if self.full_rows is not None and not method_facts(self.method).full_rows else []
        return with_texts(self.index or self.method, [*knob_names(self.method, self.knobs), *drawn])

    @property
    def device(self) -> str:
        """Return the device that it was timed on."""
        return self.origin.device


def kernel_rows(store: Store) -> list[KernelRow]:
    """Return a row for each case and device, from its last record, short lengths first. Raises RecordError for corrupt
    records."""
    check_study(store)
    latest = {(digest(record["identity"]), record["device"]): record for record in store.kernels.read()}
    runs = {run["run"]: run for run in store.runs.read()}  # last: they are recorded before what they measure
    return sorted((_row(record, runs[record["run"]], store.folder.name) for record in latest.values()), key=_order)


def write_kernel_leaderboard(store: Store) -> tuple[Path, list[KernelRow]]:
    """Rebuild `leaderboard.csv` of a study of kernels and return its path and rows. Raises UserError where it can't be
    written."""
    rows = kernel_rows(store)
    columns = (kernel_row_columns(row).values() for row in rows)
    return write_csv(store.folder / "leaderboard.csv", KERNEL_COLUMNS, columns), rows


def kernel_row_columns(row: KernelRow) -> dict[str, Any]:
    """Return the value of every column of a study of kernels in its order, None for those that only models have."""
    values = vars(row) | vars(row.origin) | vars(row.times) | {"model": row.shape, "cell": row.case}
    values |= {"knob": knobs_text(row.knobs), "settings": as_command_line(row.settings)}
    return {name: values.get(name) for name in KERNEL_COLUMNS}


def _order(row: KernelRow) -> tuple[Any, ...]:
    return (
        row.phase,
        row.shape,
        row.device,
        row.length,
        row.batch,
        row.block_size or 0,
        OPS.index(row.op),
        row.sparsity or 0.0,
        row.index,
        row.method,
        row.kernel,
        row.full_rows or 0,
        row.seed,
        row.dtype,
    )


def _row(record: Record, run: Record, study: str) -> KernelRow:
    identity, about = record["identity"], record["about"]
    last = {LAST: identity[LAST]} if LAST in identity else {}
    return KernelRow(
        study=study,
        shape=identity["shape"],
        knobs={**method_facts(identity["method"]).formula, **last},
        full_rows=_full_rows(identity),
        settings=tuple(case_settings(identity)),
        **{name: identity[name] for name in ("method", "kernel", "sparsity", "length", "batch", "seed", "dtype")},
        **{name: identity[name] for name in ("phase", "op", "index")},
        **{name: record[name] for name in ("density", "error", "dense_ms", "dense_kernel", "peak_mib", "timing")},
        **{name: record[name] or identity["block"] for name in ("q_block", "k_block")},
        block_size=identity["block"],
        match=None if identity["op"] == FULL else match_of(identity["sparsity"], record["density"]),
        selection=_selection_name(identity["selection"], last, about.get("selection")),
        shared=identity["index"].endswith(SHARED) if identity["index"] else None,
        haystack=about.get("haystack", ""),
        case=record["case"],
        status=record["status"],
        reason=record["reason"],
        origin=origin_of([run], date=record["date"]),
        times=_times(record),
    )


def _full_rows(identity: Mapping[str, Any]) -> int | None:
    """Return how many query blocks at the end were full, None where none were asked for."""
    if LAST not in identity:
        return None
    own_blocks = bool(method_facts(identity["method"]).full_rows.get("own_blocks"))
    size = identity["length"], identity["block"]
    return requested_and_full(identity[LAST], True, identity["sparsity"], *size, own_blocks)[1]


def _selection_name(method: str, last: Mapping[str, int], note: str | None) -> str:
    """Return what a selection is called: its method with the knobs that it ran with here, full last rows among them where it
    has any, and what must be said of it."""
    if not method:
        return ""
    facts = method_facts(method)
    knobs = {**facts.formula, **(last if facts.full_rows else {})}
    return with_texts(method, [*knob_names(method, knobs), *([note] if note else [])])


def _times(record: Record) -> KernelTimes:
    """Return the times of a case, and what follows from them. A selection alone has no total."""
    calls, op = record["times"], record["identity"]["op"]
    median = {name: values[0] for name, values in calls.items()}
    times = KernelTimes()
    if "total" in calls:
        _, low, high, repeats = calls["total"]
        times = replace(times, total_low=low, total_high=high, repeats=int(repeats))
    total = median.get("total")
    if op == SELECTION:
        return replace(times, selection_ms=total)
    attention = median.get("attention", total if op == FULL else None)
    times = replace(times, selection_ms=median.get("selection"), attention_ms=attention, total_ms=total)
    if op in (FULL, SPARSE):  # a block map is no attention that could be faster
        times = _beside_dense(times, record["dense_ms"], record["density"])
    if attention and record["flop"]:
        times = replace(times, tflops=record["flop"] / (attention * 1e9))
    if attention and record["kv_bytes"]:
        times = replace(times, gb_s=record["kv_bytes"] / (attention * 1e6))
    return times


def _beside_dense(times: KernelTimes, dense_ms: float | None, density: float | None) -> KernelTimes:
    """Return times with their ratios to dense attention, with and without the selection."""
    if dense_ms is None:
        return times
    if times.total_ms:
        ideal = None if density is None else 100 * dense_ms * density / times.total_ms
        times = replace(times, speedup=dense_ms / times.total_ms, pct_ideal=ideal)
    if times.attention_ms:
        ideal = None if density is None else 100 * dense_ms * density / times.attention_ms
        times = replace(times, attention_speedup=dense_ms / times.attention_ms, attention_pct_ideal=ideal)
    return times
