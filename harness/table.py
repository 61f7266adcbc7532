"""The table in the terminal: what was measured, accuracy and time of an arm in one line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from harness.leaderboard import Row
from harness.schema import AVERAGE, Status

FEW = 8
"""Up to so many arms, their tasks are shown one by one too."""


def show(console: Console, rows: Sequence[Row], arms: set[str]) -> None:
    """Print the average and latency rows of `arms` (ids; empty: all), the tasks of few arms, and what went wrong."""
    mine = [r for r in rows if not arms or r["_arm"] in arms]
    averages = [r for r in mine if r["task"] in (AVERAGE, "")]
    if not averages:
        console.print("no finished cells yet")
        return
    if len(averages) <= FEW:
        _tasks(console, [r for r in mine if r["task"] not in (AVERAGE, "")], averages)
    _arms(console, averages)
    for row in mine:
        if row["status"] != Status.OK and row["task"] != AVERAGE:
            style = "red" if row["status"] == Status.FAILED else "yellow"
            where = f"{row['method']} at {row['length']}, {row['task']}"
            console.print(f"[{style}]{row['status']}[/]: {where}: {row['reason']}", highlight=False, soft_wrap=True)


def _arms(console: Console, rows: Sequence[Row]) -> None:
    first = rows[0]
    table = Table(title=f"{first['model']} on {first['device']}", title_justify="left", title_style="bold")
    table.add_column("method")
    for name in ("sparsity", "length", "density", "accuracy", "95 %", "dense", "p", "select ms", "attend ms", "total ms",
                 "speedup", "% ideal", "TTFT ms"):  # fmt: skip
        table.add_column(name, justify="right", no_wrap=True)
    for r in rows:
        table.add_row(
            r["method"], _number(r["sparsity"], "g"), str(r["length"]), _number(r["density"], ".3f"),
            _percent(r["accuracy"]), _interval(r), _percent(r["dense_accuracy"]), _number(r["p_value"], ".2g"),
            _number(r["selection_ms"], ".3g"), _number(r["attention_ms"], ".3g"), _number(r["total_ms"], ".3g"),
            _number(r["speedup"], ".2f", "×"), _number(r["pct_ideal"], ".0f"), _number(r["ttft_ms"], ".4g"),
        )  # fmt: skip
    console.print(table)


def _tasks(console: Console, rows: Sequence[Row], averages: Sequence[Row]) -> None:
    """Accuracy by task, a column per arm."""
    arms = {r["_arm"]: r for r in averages if r["task"] == AVERAGE}
    tasks = list(dict.fromkeys(r["task"] for r in rows))
    if not arms or not tasks:
        return
    table = Table(title="accuracy (%) by task, with its 95 % interval", title_justify="left", title_style="bold")
    table.add_column("task")
    for row in arms.values():
        sparsity = f" {row['sparsity']:g}" if row["sparsity"] else ""
        table.add_column(f"{row['method']}{sparsity}\n{row['length']} tokens", justify="right", no_wrap=True)
    cells = {(r["_arm"], r["task"]): r for r in rows}
    for task in [*tasks, AVERAGE]:
        found = [arms[a] if task == AVERAGE else cells.get((a, task)) for a in arms]
        table.add_row(
            task, *("" if r is None else f"{_percent(r['accuracy'])} {_interval(r)}".strip() for r in found),
            style="bold" if task == AVERAGE else None,
        )  # fmt: skip
    console.print(table)


def _percent(value: Any) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _interval(row: Row) -> str:
    return "" if row["accuracy"] is None else f"[dim]{100 * row['accuracy_low']:.0f}–{100 * row['accuracy_high']:.0f}[/]"


def _number(value: Any, form: str, unit: str = "") -> str:
    return "" if value is None else f"{value:{form}}{unit}"
