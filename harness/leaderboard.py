"""leaderboard.csv: made from the records of a study alone, whole, every time.

One row a cell; one row with `task=avg` per arm (mean over its tasks, each weighing the same); one row without accuracy
for an arm that was only timed. The row a method shares with dense is paired: same samples, same setting.
"""

from __future__ import annotations

import csv
import os
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness import stats
from harness.plan import digest
from harness.records import Record, Store
from harness.schema import AVERAGE, COLUMNS, Status

Row = dict[str, Any]
SUSPICIOUS = 0.01
"""A method above dense with a p-value below this is gated: dropping attention can hardly help, a bug can."""


def is_baseline(record: Mapping[str, Any]) -> bool:
    """Whether a cell or latency record belongs to the dense baseline: no sparse kernel ran."""
    return record["identity"]["kernel"] is None


def finished(cells: Iterable[Record]) -> dict[str, Record]:
    """The last state of every cell that was ever finished. A cell that is being extended keeps its last verdict."""
    return {c["cell"]: c for c in cells if c["status"] != Status.RUNNING}


def rows(store: Store) -> list[Row]:
    """All rows of a study, sorted by model, length, method (dense first), sparsity, seed and task."""
    cells = finished(store.cells.read())
    samples = store.samples_of()
    runs = {r["run"]: r for r in store.runs.read()}
    timed = {(r["arm"], r["device"]): r for r in store.latency.read()}
    dense = {c["pair"]: c for c in cells.values() if is_baseline(c)}
    table: list[Row] = []
    arms: dict[str, list[tuple[Record, Row]]] = defaultdict(list)
    for cell in cells.values():
        row = _cell_row(cell, samples, dense.get(cell["pair"]), runs, timed)
        table.append(row)
        arms[digest([cell["arm"], cell["identity"]["data"], cell["identity"]["chat_template"]])].append((cell, row))
    for members in arms.values():
        table.append(_average_row(members, samples, dense))
    counted = {c["arm"] for c in cells.values()}
    table += [_latency_row(t, runs) for (arm, _), t in timed.items() if arm not in counted]
    for row in table:
        row["study"] = store.folder.name
    baselines = {row["method"] for row in table if row["block_size"] is None}
    return sorted(table, key=lambda r: _order(r, baselines))


def _order(row: Row, baselines: set[str]) -> tuple[Any, ...]:
    return (
        row["model"], row["length"], row["method"] not in baselines, row["method"], row["sparsity"] or 0.0,
        str(row["knob"]), row["seed"], row["device"], row["task"] == AVERAGE, row["task"],
    )  # fmt: skip


def _base(record: Record) -> Row:
    identity, knobs, arm = record["identity"], record["knobs"], record["arm"]
    row: Row = dict.fromkeys(COLUMNS)
    row |= {k: identity[k] for k in ("model", "method", "sparsity", "length", "seed", "dtype", "block_size")}
    row["knob"] = ";".join(f"{k}={_text(v)}" for k, v in knobs.items())
    row["reason"] = row["task"] = row["haystack"] = ""
    row["_arm"] = arm  # not a column: which arm the row belongs to, for those who pick rows
    return row


def _provenance(run: Record) -> Row:
    got = run["versions"]
    return {
        "device": run["device"], "commit": run["commit"], "command": run["command"], "torch": got.get("torch"),
        "triton": got.get("triton"), "transformers": got.get("transformers"), "date": run["date"],
    }  # fmt: skip


def _cell_row(
    cell: Record,
    samples: Mapping[str, list[Record]],
    dense: Record | None,
    runs: Mapping[str, Record],
    timed: Mapping[tuple[str, str], Record],
) -> Row:
    mine = samples.get(cell["cell"], [])
    row = _base(cell)
    row |= _provenance(runs[cell["run"]]) | {"date": cell["date"], "cell": cell["cell"]}
    row |= {"task": cell["identity"]["task"], "haystack": cell["haystack"], "samples": len(mine)}
    row["kernel"] = "+".join(sorted({k for s in mine for k in s["kernels"]}))
    row["density"] = _mean([s["density"] for s in mine if s["density"] is not None])
    if is_baseline(cell):
        row["density"], row["dense_kernel"] = 1.0, cell["identity"]["dense_kernel"]
    if mine:
        row["ttft_ms"] = 1000 * statistics.median(s["prefill_s"] for s in mine)
    row["status"], row["reason"] = cell["status"], cell["reason"]
    if cell["status"] != Status.FAILED and mine:
        theirs = None if dense is None or is_baseline(cell) else samples.get(dense["cell"], [])
        row |= accuracy(mine, theirs, cell["identity"]["seed"])
        row["status"], row["reason"] = verdict(mine, row)
    if latency := timed.get((cell["arm"], row["device"])):
        row |= _times(latency)
    return row


def accuracy(mine: Sequence[Record], dense: Sequence[Record] | None, seed: int) -> Row:
    """Accuracy with its interval and, given dense samples, the paired comparison on the samples both have."""
    scores = [s["score"] for s in mine]
    low, high = stats.interval(scores, seed=seed)
    row: Row = {"accuracy": statistics.fmean(scores), "accuracy_low": low, "accuracy_high": high}
    if dense:
        ours, theirs = _paired(mine, dense)
        if ours:
            row |= {"dense_accuracy": statistics.fmean(theirs), "p_value": stats.paired_p(ours, theirs, seed=seed)}
    return row


def verdict(mine: Sequence[Record], row: Row) -> tuple[str, str]:
    """Status and reason of a cell with samples: its samples' gates, then the gate on beating dense."""
    gated = [s for s in mine if s["status"] == Status.GATED]
    if gated:
        return Status.GATED, f"{len(gated)} of {len(mine)} samples: {gated[0]['reason']}"
    paired = row.get("dense_accuracy") is not None
    if paired and row["accuracy"] > row["dense_accuracy"] and row["p_value"] < SUSPICIOUS:
        return Status.GATED, f"above dense by more than noise (p={row['p_value']:.2g}): suspected bug"
    return Status.OK, ""


def _paired(mine: Sequence[Record], dense: Sequence[Record]) -> tuple[list[float], list[float]]:
    theirs = {s["index"]: s["score"] for s in dense}
    both = [(s["score"], theirs[s["index"]]) for s in mine if s["index"] in theirs]
    return [a for a, _ in both], [b for _, b in both]


def _average_row(
    members: Sequence[tuple[Record, Row]], samples: Mapping[str, list[Record]], dense: Mapping[str, Record]
) -> Row:
    newest = max((row for _, row in members), key=lambda r: str(r["date"]))
    row = dict(newest) | {"task": AVERAGE, "cell": ""}
    row["haystack"] = "+".join(sorted({r["haystack"] for _, r in members}))
    row["samples"] = sum(r["samples"] for _, r in members)
    densities = [r["density"] for _, r in members if r["density"] is not None]
    row["density"] = _mean(densities)
    row["kernel"] = "+".join(sorted({k for _, r in members for k in str(r["kernel"]).split("+") if k}))
    for name in ("accuracy", "accuracy_low", "accuracy_high", "dense_accuracy", "p_value"):
        row[name] = None
    failed = sorted(r["task"] for _, r in members if r["accuracy"] is None)
    gated = sorted(r["task"] for _, r in members if r["status"] == Status.GATED)
    row["status"], row["reason"] = Status.OK, f"mean of {len(members)} tasks"
    if failed:  # a mean over fewer tasks than the others have would not be comparable
        row["status"], row["reason"] = Status.FAILED, f"no accuracy for {', '.join(failed)}"
        return row
    if gated:
        row["status"], row["reason"] = Status.GATED, f"gated tasks: {', '.join(gated)}"
    groups = [[s["score"] for s in samples[c["cell"]]] for c, _ in members]
    row["accuracy"] = statistics.fmean(statistics.fmean(g) for g in groups)
    row["accuracy_low"], row["accuracy_high"] = stats.average_interval(groups, seed=row["seed"])
    if all(not is_baseline(c) and c["pair"] in dense for c, _ in members):
        pairs = [_paired(samples[c["cell"]], samples.get(dense[c["pair"]]["cell"], [])) for c, _ in members]
        if all(ours for ours, _ in pairs):
            row["dense_accuracy"] = statistics.fmean(statistics.fmean(theirs) for _, theirs in pairs)
            row["p_value"] = stats.average_p([a for a, _ in pairs], [b for _, b in pairs], seed=row["seed"])
    return row


def _times(record: Record) -> Row:
    """The latency columns. The baseline's are those of the fastest dense kernel, its own ideal."""
    row = {k: record[k] for k in ("selection_ms", "attention_ms", "total_ms", "dense_ms", "dense_kernel", "tflops")}
    row |= {"ttft_ms": record["ttft_ms"], "peak_mib": record["peak_mib"]}
    row["speedup"] = record["dense_ms"] / record["total_ms"]
    row["pct_ideal"] = 100 * record["dense_ms"] * record["density"] / record["total_ms"]
    return row


def _latency_row(record: Record, runs: Mapping[str, Record]) -> Row:
    row = _base(record) | _provenance(runs[record["run"]]) | _times(record)
    row |= {"density": record["density"], "kernel": record["kernel"], "date": record["date"], "status": Status.OK}
    return row


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def write(store: Store) -> tuple[Path, list[Row]]:
    """Rebuild `leaderboard.csv` (in one step: readers see the old file or the new one) and return it and its rows."""
    table = rows(store)
    path = store.folder / "leaderboard.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows([_text(row[c]) for c in COLUMNS] for row in table)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    return path, table
