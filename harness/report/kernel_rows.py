"""leaderboard.csv and the terminal's table of a study of kernels, made from its records alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from harness.measure.kernel_speed.cases import BLOCK_MAP, FULL, SELECTION, SHARED, SPARSE
from harness.report import leaderboard
from harness.report.leaderboard import Row
from harness.study.identity import digest
from harness.study.schema import KERNEL_COLUMNS, Status
from harness.study.store import Record, Store

OPS = (FULL, BLOCK_MAP, SELECTION, SPARSE)
"""The order of rows within a length."""
SHOWN = 40
"""Rows up to which the terminal shows all; of more, those at the longest length and the sparsity nearest to 0.9."""


def rows(store: Store) -> list[Row]:
    """A row a case and device, from its last record, short lengths first."""
    runs = {r["run"]: r for r in store.runs.read()}
    latest = {(digest(r["identity"]), r["device"]): r for r in store.kernels.read()}
    table = [_row(record, runs[record["run"]]) for record in latest.values()]
    for row in table:
        row["study"] = store.folder.name
    return sorted(table, key=_order)


def write(store: Store) -> tuple[Path, list[Row]]:
    """Rebuild `leaderboard.csv` and return it and its rows."""
    table = rows(store)
    return leaderboard.write_csv(store.folder / "leaderboard.csv", KERNEL_COLUMNS, table), table


def _order(row: Row) -> tuple[Any, ...]:
    return (
        row["phase"],
        row["model"],
        row["device"],
        row["length"],
        row["batch"],
        row["block_size"] or 0,
        OPS.index(row["op"]),
        row["sparsity"] or 0.0,
        row["index"],
        row["method"],
        row["kernel"],
        row["seed"],
        row["dtype"],
    )


def _row(record: Record, run: Record) -> Row:
    identity = record["identity"]
    row: Row = dict.fromkeys(KERNEL_COLUMNS)
    row |= {
        k: identity[k] for k in ("method", "kernel", "sparsity", "length", "batch", "seed", "dtype", "phase", "op", "index")
    }
    row |= {k: record[k] for k in ("density", "error", "dense_ms", "dense_kernel", "peak_mib", "timing", "status", "reason")}
    row |= leaderboard.provenance([run]) | {"date": record["date"], "cell": record["case"], "knob": "", "task": ""}
    row |= {"model": identity["shape"], "block_size": identity["block"], "decode": ""}
    about = record["about"]
    row["selection"] = identity["selection"] + (f" ({about['selection']})" if "selection" in about else "")
    row["haystack"] = about.get("haystack", "")
    if identity["index"]:
        row["shared"] = identity["index"].endswith(SHARED)
    row |= {k: record[k] or identity["block"] for k in ("q_block", "k_block")}
    return row | _times(record)


def _times(record: Record) -> Row:
    """The columns of time. `total_ms` of dense attention and of a block map is the call; a selection alone has none."""
    times, op = record["times"], record["identity"]["op"]
    median = {name: values[0] for name, values in times.items()}
    if op == SELECTION:
        return {"selection_ms": median.get("total"), **_spread(times.get("total"))}
    total = median.get("total")
    attention = median.get("attention", total if op == FULL else None)
    found: Row = {"selection_ms": median.get("selection"), "attention_ms": attention, "total_ms": total}
    found |= _spread(times.get("total"))
    dense, density = record["dense_ms"], record["density"]
    if dense is not None and op in (FULL, SPARSE):  # a block map is no attention that could be faster
        found["speedup"] = dense / total if total else None
        found["attention_speedup"] = dense / attention if attention else None
        if density is not None:
            found["pct_ideal"] = 100 * dense * density / total if total else None
            found["attention_pct_ideal"] = 100 * dense * density / attention if attention else None
    if attention and record["flop"]:
        found["tflops"] = record["flop"] / (attention * 1e9)
    if attention and record["kv_bytes"]:
        found["gb_s"] = record["kv_bytes"] / (attention * 1e6)
    return found


def _spread(values: Sequence[float] | None) -> Row:
    return {} if values is None else {"total_low": values[1], "total_high": values[2], "repeats": int(values[3])}


def show(console: Console, table: Sequence[Row]) -> None:
    """Print the rows that have a time (of many, those at the longest length), and how many have none."""
    timed = [r for r in table if r["total_ms"] is not None or r["selection_ms"] is not None]
    longest = max((r["length"] for r in timed), default=0)
    near = min((r["sparsity"] for r in timed if r["sparsity"] is not None), key=lambda s: abs(s - 0.9), default=None)
    few = [r for r in timed if r["length"] == longest and r["sparsity"] in (None, near)]
    shown = timed if len(timed) <= SHOWN else few
    if shown:
        console.print()
        console.print(_table(shown))
    others = len(timed) - len(shown)
    if others:
        console.print(f"and {others} more rows in the CSV", style="dim")
    for status in (Status.FAILED, Status.GATED):
        if count := sum(r["status"] == status for r in table):
            console.print(f"{count} rows {status}: the column `reason` says why", style="yellow", markup=False)


def _table(shown: Sequence[Row]) -> Table:
    look: dict[str, Any] = {"title_justify": "left", "title_style": "bold", "header_style": "dim"}
    made = Table(title=f"{shown[0]['model']} on {shown[0]['device']}", box=None, padding=(0, 1, 0, 0), **look)
    headings = (
        "len",
        "batch",
        "index",
        "kernel",
        "block",
        "dens",
        "select\nms",
        "attn\nms",
        "total\nms",
        "speed\nup",
        "%\nideal",
    )
    for heading in headings:
        made.add_column(heading, justify="left" if heading in ("index", "kernel") else "right", no_wrap=True)
    for r in shown:
        made.add_row(
            _length(r["length"]),
            str(r["batch"]),
            r["index"] or r["method"],
            r["kernel"] or "–",
            _number(r["block_size"], "d"),
            _number(r["density"], ".3f"),
            *(_ms(r[c]) for c in ("selection_ms", "attention_ms", "total_ms")),
            _number(r["speedup"], ".2f"),
            _number(r["pct_ideal"], ".0f"),
        )
    return made


def _length(length: int) -> str:
    return f"{length // 1024}k" if length % 1024 == 0 else str(length)


def _number(value: Any, form: str) -> str:
    return "" if value is None else f"{value:{form}}"


def _ms(value: Any) -> str:
    """Milliseconds with three digits, without an exponent."""
    return "" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.3f}"[: 5 if value < 1 else 4]
