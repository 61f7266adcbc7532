"""The table in the terminal: what was measured, accuracy and time of an arm in one line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from harness.core.question import QUESTION_TITLES
from harness.report.common_tasks import comparable
from harness.report.leaderboard import Row
from harness.report.terminal import perplexity_table
from harness.report.variants import lines
from harness.study.schema import AVERAGE, PERPLEXITY, Status

HEADINGS = (
    "method",
    "len",
    "tasks",
    "dens",
    "decode\ndens",
    "accuracy %",
    "Δ\ndense",
    "p",
    "select\nms",
    "total\nms",
    "speed\nup",
    "%\nideal",
    "TTFT\nms",
    "kept\nmass %",
)
"""Columns of the table of arms; times are per attention layer call. Δ dense, in points, and p (after Holm, over all averages of
the model and length) compare with dense on the same samples; ✓: shown to lose less than the margin."""
INTERVAL = 13
"""Characters of a column of accuracies with their intervals; where there is no room for them, they stay in the leaderboard."""
FEW = 8
"""Up to so many arms, their tasks are shown one by one too."""


def show(console: Console, rows: Sequence[Row], arms: set[str]) -> None:
    """Print the average and latency rows of `arms` (ids; empty: all), the tasks of few arms, and what went wrong."""
    console.print()
    mine = [r for r in rows if not arms or r["_arm"] in arms]
    perplexity_table.show(console, [r for r in mine if r["task"] == PERPLEXITY])
    kept, left = comparable(mine)
    alike = {r["_group"]: r for r in kept}
    averages = [alike.get(r.get("_group"), r) for r in mine if r["task"] in (AVERAGE, "")]
    if not averages and not any(r["task"] == PERPLEXITY for r in mine):
        console.print("no finished cells yet")
        return
    # models and devices, and when the question was asked, don't compare
    for model, device, asked in dict.fromkeys(map(_apart, averages)):
        own = [r for r in averages if _apart(r) == (model, device, asked)]
        if len(own) <= FEW:
            _tasks(console, [r for r in mine if r["task"] not in (AVERAGE, PERPLEXITY, "")], own, asked)
        _arms(console, own, asked)
    for row in left:
        where = f"{row['method']} at {row['length']}{_asked(row)}"
        text = f"not comparable: {where}: its average is over other tasks than most have ({row['reason']})"
        console.print(text, style="yellow", markup=False, soft_wrap=True)
    for row in mine:
        if row["status"] != Status.OK and row["task"] != AVERAGE:
            style = "red" if row["status"] == Status.FAILED else "yellow"
            where = f"{row['model']}, {row['method']} at {row['length']}, {row['task']}{_asked(row)}"
            console.print(f"{row['status']}: {where}: {row['reason']}", style=style, markup=False, soft_wrap=True)


def _apart(row: Row) -> tuple[str, str, str]:
    """What rows of one table share: model, device, and when the question was asked."""
    return row["model"], row["device"], _asked(row)


def _asked(row: Row) -> str:
    """When the question was asked, as titles end in it; "" where it was seen with its context."""
    return f", {QUESTION_TITLES[row['question']]}" if row["question"] in QUESTION_TITLES else ""


def _arms(console: Console, rows: Sequence[Row], asked: str) -> None:
    """Accuracy (mean over tasks) and times, a line per arm."""
    table = _table(f"{rows[0]['model']} on {rows[0]['device']}{asked}")
    names = _names(rows)
    wide = len({r["tasks"] for r in rows if r["task"] == AVERAGE}) > 1  # means of other tasks stand beside each other
    masses = all(r["accuracy"] is None and r["total_ms"] is None for r in rows)  # nothing but the mass was measured
    cells = [
        (
            names[id(r)],
            _length(r["length"]),
            _count(r) if wide else "",
            _number(r["density"], ".3f"),
            _number(r["decode_density"], ".3f"),
            _accuracy(r),
            _difference(r),
            _p(r["p_holm"]),
            _ms(r["selection_ms"]),
            _ms(r["total_ms"]),
            _number(r["speedup"], ".2f"),
            _number(r["pct_ideal"], ".0f"),
            _ms(r["ttft_ms"]),
            _percent(r["kept_mass"]) if masses else "",
        )
        for r in rows
    ]
    shown = [any(column) for column in zip(*cells, strict=True)]  # what nobody measured takes no room
    for name in (name for name, show in zip(HEADINGS, shown, strict=True) if show):
        table.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)
    for line in cells:
        table.add_row(*(cell for cell, show in zip(line, shown, strict=True) if show))
    console.print(table)
    if margin := next((r["margin"] for r in rows if r["margin"] is not None), None):
        text = f"✓ loses less than {100 * margin:g} points to dense, shown at 95 % (margin={margin:g}); p after Holm"
        console.print(text, style="dim", highlight=False, soft_wrap=True)
    console.print()


def _tasks(console: Console, rows: Sequence[Row], averages: Sequence[Row], asked: str) -> None:
    """Accuracy by task, a column per arm."""
    groups = {r["_group"]: r for r in averages if r["task"] == AVERAGE}
    names = _names(averages)
    tasks = list(dict.fromkeys(r["task"] for r in rows if r["_group"] in groups))
    if not tasks:
        return
    room = console.width - max(map(len, tasks)) - 1
    full = room >= INTERVAL * len(groups)
    table = _table(f"{averages[0]['model']}: accuracy (%) by task{', with its 95 % interval' if full else ''}{asked}")
    table.add_column("task", no_wrap=True)
    for row in groups.values():
        length = f"{_length(row['length'])} tokens" if full else _length(row["length"])
        table.add_column(f"{names[id(row)]}{_sparsity(row)}\n{length}", justify="right", no_wrap=True)
    cells = {(r["_group"], r["task"]): r for r in rows}
    for task in [*tasks, AVERAGE]:
        found = [groups[g] if task == AVERAGE else cells.get((g, task)) for g in groups]
        texts = ["" if r is None else _accuracy(r) for r in found]
        table.add_row(
            task, *(text if full else text.split(" ")[0] for text in texts), style="bold" if task == AVERAGE else None
        )
    console.print(table)
    console.print()


def _table(title: str) -> Table:
    """A table without lines, so that it fits a terminal of 80 columns."""
    look: dict[str, Any] = {"title_justify": "left", "title_style": "bold", "header_style": "dim"}
    return Table(title=title, box=None, padding=(0, 1, 0, 0), **look)


def _names(rows: Sequence[Row]) -> dict[int, str]:
    """What each row is called, by its id(): the method, and what tells it from the method's other rows."""
    return {id(row): name for name, members in lines(rows).items() for row in members}


def _sparsity(row: Row) -> str:
    return f" {row['sparsity']:g}" if row["sparsity"] else ""


def _accuracy(row: Row) -> str:
    if row["accuracy"] is None:
        return str(row["status"]) if row["task"] else ""
    low, high = (f"{100 * row[c]:.0f}" for c in ("accuracy_low", "accuracy_high"))
    return f"{100 * row['accuracy']:.1f} [dim]{f'{low}–{high}':>6}[/]"


def _difference(row: Row) -> str:
    if row["difference"] is None:
        return ""
    return f"{100 * row['difference']:+.1f}{'✓' if row['noninferior'] == 'yes' else ' '}"


def _count(row: Row) -> str:
    """How many tasks an average is over."""
    return "" if row["tasks"] is None else str(row["tasks"])


def _number(value: Any, form: str) -> str:
    return "" if value is None else f"{value:{form}}"


def _percent(value: Any) -> str:
    return "" if value is None else f"{100 * value:.0f}"


def _ms(value: Any) -> str:
    """Milliseconds with three digits, without an exponent."""
    return "" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.3f}"[:4]


def _p(value: Any) -> str:
    return "" if value is None else "<.001" if value < 0.001 else f"{value:.3f}"


def _length(length: int) -> str:
    return f"{length // 1024}k" if length % 1024 == 0 else str(length)
