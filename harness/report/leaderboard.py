"""leaderboard.csv: made from the records of a study alone, whole, every time.

One row a cell; one row with `task=avg` per arm (mean over its tasks, each weighing the same); one row without accuracy
for an arm that was only timed, or of which only the attention mass was measured. The row a method shares with dense is
paired: same samples, same setting. Averages of different sets of tasks don't compare: `harness.report.common_tasks` brings them to
one set. Rows of perplexity are made in `perplexity_rows`.
"""

from __future__ import annotations

import csv
import os
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.core.question import QUESTION_SEEN
from harness.report import significance
from harness.stats.scores import average_interval
from harness.study import verdict
from harness.study.identity import digest
from harness.study.schema import AVERAGE, COLUMNS, PERPLEXITY, Status
from harness.study.store import Record, Store

Row = dict[str, Any]
FULL = "full"
"""How the column `decode` begins where no method decodes."""


def is_baseline_row(row: Row) -> bool:
    """The same of a row."""
    return row["block_size"] is None and str(row["decode"]).startswith(FULL)


def rows(store: Store, margin: float = significance.MARGIN) -> list[Row]:
    """All rows of a study, sorted by model, length, method (dense first), sparsity, seed and task. margin: the accuracy that a
    method may lose and still be called non-inferior to dense."""
    from harness.report.perplexity_rows import rows as perplexity_rows  # made of the parts here

    every = verdict.finished(store.cells.read())
    cells = {cell: record for cell, record in every.items() if record["identity"]["task"] != PERPLEXITY}
    samples = store.samples_of()
    runs = {r["run"]: r for r in store.runs.read()}
    timed = {(r["arm"], r["device"]): r for r in store.latency.read()}
    checks = verdict.unsound(store)
    dense = {c["pair"]: c for c in cells.values() if verdict.is_baseline(c)}
    table: list[Row] = []
    arms: dict[str, list[tuple[Record, Row]]] = defaultdict(list)
    for cell in cells.values():
        row = _cell_row(
            cell,
            samples,
            dense.get(cell["pair"]),
            runs,
            timed,
            checks.get(verdict.arm_as_run(cell), ""),
        )
        table.append(row)
        arms[digest([*verdict.arm_as_run(cell), cell["identity"]["data"]])].append((cell, row))
    averages: list[tuple[Row, significance.Scores]] = []
    for group, members in arms.items():
        average = _average_row(members, samples, dense, runs, timed)
        averages.append((average, significance.scores_of(samples, [cell for cell, _ in members])))
        for row in (average, *(row for _, row in members)):
            row["_group"] = group  # not a column: which rows an average is made of
        table.append(average)
    table += perplexity_rows(every, store.perplexity.read(), runs, timed)
    counted = {c["arm"] for c in every.values()}
    table += [_latency_row(t, runs) for (arm, _), t in timed.items() if arm not in counted]
    kept = {record["arm"]: record for record in store.mass.read()}
    table += [mass_row(m, runs) for arm, m in kept.items() if arm not in counted and not any(a == arm for a, _ in timed)]
    for row in table:
        row["study"] = store.folder.name
        if row["_arm"] in kept:  # of more prompts than the one that was timed
            row["kept_mass"] = mean_mass(kept[row["_arm"]])
    significance.gate_rising(averages)
    significance.judge(table, margin)
    baselines = {row["method"] for row in table if is_baseline_row(row)}
    return sorted(table, key=lambda r: _order(r, baselines))


def _order(row: Row, baselines: set[str]) -> tuple[Any, ...]:
    return (
        row["model"],
        row["length"],
        row["question"] not in ("", QUESTION_SEEN),
        row["question"],
        row["method"] not in baselines,
        row["method"],
        row["sparsity"] or 0.0,
        row["block_size"] or 0,
        str(row["knob"]),
        not is_baseline_row(row),
        str(row["decode"]).split(" ")[0],
        row["decode_density"] or 0.0,
        str(row["decode"]),
        row["seed"],
        row["device"],
        row["task"] == AVERAGE,
        row["task"],
    )


def base_row(record: Record) -> Row:
    """A row with what every record says of its arm, the other columns None."""
    identity, knobs, arm = record["identity"], record["knobs"], record["arm"]
    row: Row = dict.fromkeys(COLUMNS)
    row |= {k: identity[k] for k in ("model", "method", "sparsity", "length", "seed", "dtype", "block_size")}
    row["knob"] = ";".join(f"{k}={_text(v)}" for k, v in knobs.items())
    row["reason"] = row["task"] = row["haystack"] = row["question"] = ""
    row["decode"] = _decoding(identity)
    row["_arm"] = arm  # not a column: which arm the row belongs to, for those who pick rows
    return row


def _decoding(identity: Mapping[str, Any]) -> str:
    """How tokens after the first were computed: a method with its knobs, or full attention."""
    if "decode" not in identity:
        return FULL
    found = identity["decode"]
    return " ".join([found["method"], *(f"{k}={_text(v)}" for k, v in found["knobs"].items() if v is not None)])


def provenance(used: Iterable[Record]) -> Row:
    """Where a row's numbers come from: of all processes that made them, in their order."""
    runs = sorted({run["run"]: run for run in used}.values(), key=lambda run: (str(run["date"]), str(run["run"])))

    def joined(values: Iterable[Any], between: str = "+") -> str | None:
        return between.join(dict.fromkeys(str(v) for v in values if v is not None)) or None

    versions = {name: joined(run["versions"].get(name) for run in runs) for name in ("torch", "triton", "transformers")}
    origin = {name: joined(run[name] for run in runs) for name in ("device", "commit")}
    return {**versions, **origin, "command": joined((run["command"] for run in runs), "; "), "date": runs[-1]["date"]}


def _cell_row(
    cell: Record,
    samples: Mapping[str, list[Record]],
    dense: Record | None,
    runs: Mapping[str, Record],
    timed: Mapping[tuple[str, str], Record],
    check: str,
) -> Row:
    mine = samples.get(cell["cell"], [])
    row = base_row(cell)
    row |= provenance([runs[s["run"]] for s in mine] or [runs[cell["run"]]])
    row |= {"date": cell["date"], "cell": cell["cell"]}
    row |= {"task": cell["identity"]["task"], "haystack": cell["haystack"], "samples": len(mine)}
    row["question"] = cell["identity"].get("question", QUESTION_SEEN)
    row["kernel"] = "+".join(sorted({k for s in mine for k in s["kernels"]}))
    decoded = sorted({k for s in mine for k in s.get("decode_kernels", [])})
    row["decode"] += f" ({'+'.join(decoded)})" if decoded else ""
    row["density"] = _mean([s["density"] for s in mine if s["density"] is not None])
    row["token_density"] = _mean_of_all([s.get("token_density") for s in mine])
    row["truncated"] = sum(s.get("cut", 0) > 0 for s in mine)
    row["decode_density"] = _mean([s["decode_density"] for s in mine if s.get("decode_density") is not None])
    if cell["identity"]["kernel"] is None:
        row["density"] = row["token_density"] = 1.0
        row["dense_kernel"] = cell["identity"]["dense_kernel"]
    row["status"], row["reason"] = cell["status"], cell["reason"]
    if cell["status"] != Status.FAILED and mine:
        theirs = None if dense is None or verdict.is_baseline(cell) else samples.get(dense["cell"], [])
        row |= verdict.accuracy(mine, theirs, cell["identity"]["seed"])
        row["status"], row["reason"] = verdict.verdict(mine, row, check)
    if latency := timed.get((cell["arm"], row["device"])):
        row |= times(latency)
    return row


def _average_row(
    members: Sequence[tuple[Record, Row]],
    samples: Mapping[str, list[Record]],
    dense: Mapping[str, Record],
    runs: Mapping[str, Record],
    timed: Mapping[tuple[str, str], Record],
) -> Row:
    first, task_rows = members[0][0], [row for _, row in members]
    row = base_row(first) | provenance(
        runs[run] for c, _ in members for run in {c["run"], *(s["run"] for s in samples.get(c["cell"], []))}
    )
    row |= {"task": AVERAGE, "cell": "", "tasks": len(members), "date": max(str(r["date"]) for r in task_rows)}
    row["dense_kernel"], row["decode"], row["question"] = (task_rows[0][c] for c in ("dense_kernel", "decode", "question"))
    row["haystack"] = "+".join(sorted({r["haystack"] for r in task_rows}))
    for column in ("samples", "truncated"):
        row[column] = sum(r[column] for r in task_rows)
    for column in ("density", "decode_density"):
        row[column] = _mean([r[column] for r in task_rows if r[column] is not None])
    row["token_density"] = _mean_of_all([r["token_density"] for r in task_rows])
    row["kernel"] = "+".join(sorted({k for r in task_rows for k in str(r["kernel"]).split("+") if k}))
    if latency := timed.get((first["arm"], row["device"])):
        row |= times(latency)
    failed = sorted(r["task"] for r in task_rows if r["accuracy"] is None)
    twice = sorted(task for task, count in Counter(r["task"] for r in task_rows).items() if count > 1)
    row["status"], row["reason"] = Status.OK, f"mean of {len(members)} tasks"
    if twice:
        row["status"], row["reason"] = Status.FAILED, f"{', '.join(twice)} from several versions of a file: one to a study"
        return row
    if failed:  # a mean over fewer tasks than the others have would not be comparable
        row["status"], row["reason"] = Status.FAILED, f"no accuracy for {', '.join(failed)}"
        return row
    row |= mean_accuracy(task_rows)
    if all(not verdict.is_baseline(c) and c["pair"] in dense for c, _ in members):
        pairs = [verdict.paired_scores(samples[c["cell"]], samples.get(dense[c["pair"]]["cell"], [])) for c, _ in members]
        if all(ours for ours, _ in pairs):
            row |= verdict.compare([a for a, _ in pairs], [b for _, b in pairs], row["seed"])
    row |= _average_verdict(row, task_rows)
    return row


def mean_accuracy(task_rows: Sequence[Row]) -> Row:
    """Accuracy and its interval over tasks, each weighing the same, from the rows of the tasks."""
    means = [r["accuracy"] for r in task_rows]
    low, high = average_interval(means, [(r["accuracy_low"], r["accuracy_high"]) for r in task_rows])
    return {"accuracy": statistics.fmean(means), "accuracy_low": low, "accuracy_high": high}


def _average_verdict(row: Row, task_rows: Sequence[Row]) -> Row:
    gated = sorted(r["task"] for r in task_rows if r["status"] == Status.GATED)
    if gated:
        return {"status": Status.GATED, "reason": f"gated tasks: {', '.join(gated)}"}
    status, reason = verdict.verdict([], row)
    return {} if status == Status.OK else {"status": status, "reason": reason}


def times(record: Record) -> Row:
    """The latency columns. `dense_kernel` is the fastest one; the baseline's own times are of the kernel it ran."""
    row = {k: record[k] for k in ("selection_ms", "attention_ms", "total_ms", "dense_ms", "dense_kernel", "tflops")}
    row |= {"ttft_ms": record["ttft_ms"], "peak_mib": record["peak_mib"], "dense_ttft_ms": record.get("dense_ttft_ms")}
    row["kept_mass"] = record.get("kept_mass")
    row["speedup"] = record["dense_ms"] / record["total_ms"]
    row["pct_ideal"] = 100 * record["dense_ms"] * record["density"] / record["total_ms"]
    return row


def _latency_row(record: Record, runs: Mapping[str, Record]) -> Row:
    row = base_row(record) | provenance([runs[record["run"]]]) | times(record)
    row |= {
        "density": record["density"],
        "token_density": record.get("token_density"),
        "kernel": record["kernel"],
        "date": record["date"],
        "status": Status.OK,
    }
    return row


def mass_row(record: Record, runs: Mapping[str, Record]) -> Row:
    """The row of an arm of which nothing but the attention mass is known."""
    row = base_row(record) | provenance([runs[record["run"]]])
    return row | {
        "density": _mean(record["density"]),
        "kept_mass": mean_mass(record),
        "date": record["date"],
        "status": Status.OK,
    }


def mean_mass(record: Record) -> float:
    """The attention mass of a record, mean over layers and heads."""
    return statistics.fmean(statistics.fmean(heads) for heads in record["kept"])


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _mean_of_all(values: Sequence[float | None]) -> float | None:
    """None where one has no value: older records lack it, and a mean over the others would be of other samples."""
    known = [value for value in values if value is not None]
    return _mean(known) if len(known) == len(values) else None


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def write(store: Store, margin: float = significance.MARGIN) -> tuple[Path, list[Row]]:
    """Rebuild `leaderboard.csv` and return it and its rows."""
    table = rows(store, margin)
    return write_csv(store.folder / "leaderboard.csv", COLUMNS, table), table


def write_csv(path: Path, columns: Sequence[str], table: Sequence[Row]) -> Path:
    """Write rows as CSV in one step: readers see the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([_text(row[c]) for c in columns] for row in table)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    return path
