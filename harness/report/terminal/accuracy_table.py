"""The table in the terminal: what was measured, accuracy and time of an arm in one line."""

from __future__ import annotations

from collections.abc import Sequence, Set

from rich.console import Console
from rich.text import Text

from harness.report.common_tasks import comparable
from harness.report.lines import line_names
from harness.report.row_texts import question_title
from harness.report.rows import Row
from harness.report.terminal import formats
from harness.report.terminal.perplexity_table import show_perplexities
from harness.study.columns import AVERAGE, PERPLEXITY
from harness.study.schema import Status

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

Apart = tuple[str, str, str]
"""Model, device, and when the question was asked: what doesn't compare stands in tables of its own."""


def show_rows(console: Console, rows: Sequence[Row], arms: Set[str]) -> None:
    """Print the average and latency rows of `arms` (ids; empty: all), the tasks of few arms, and what went wrong."""
    console.print()
    shown = [row for row in rows if not arms or row.arm in arms]
    show_perplexities(console, [row for row in shown if row.task == PERPLEXITY])
    compared, left_out = comparable(shown)
    by_group = {row.group: row for row in compared}
    averages = [by_group.get(row.group, row) for row in shown if row.task in (AVERAGE, "")]
    if not averages and not any(row.task == PERPLEXITY for row in shown):
        console.print("no finished cells yet")
        return
    for key in dict.fromkeys(map(_apart, averages)):
        members = [row for row in averages if _apart(row) == key]
        if len(members) <= FEW:
            _show_tasks(console, [row for row in shown if row.task not in (AVERAGE, PERPLEXITY, "")], members)
        _show_arms(console, members)
    for row in left_out:
        where = f"{row.method} at {row.length}{question_title(row.question)}"
        text = f"not comparable: {where}: its average is over other tasks than most have ({row.reason})"
        console.print(text, style="yellow", markup=False, soft_wrap=True)
    for row in shown:
        if row.status != Status.OK and row.task != AVERAGE:
            style = "red" if row.status == Status.FAILED else "yellow"
            where = f"{row.model}, {row.method} at {row.length}, {row.task}{question_title(row.question)}"
            console.print(f"{row.status}: {where}: {row.reason}", style=style, markup=False, soft_wrap=True)


def _apart(row: Row) -> Apart:
    return row.model, row.device, question_title(row.question)


def _show_arms(console: Console, rows: Sequence[Row]) -> None:
    """Print accuracy (mean over tasks) and times, a line per arm; columns that nobody measured are left out."""
    table = formats.plain_table(f"{rows[0].model} on {rows[0].device}{question_title(rows[0].question)}")
    names = line_names(rows)
    counts_differ = len({row.tasks for row in rows if row.task == AVERAGE}) > 1
    only_masses = all(row.score is None and row.times is None for row in rows)
    lines = [
        (names[id(row)], *_cells(row, with_count=counts_differ), formats.percent(row.kept_mass) if only_masses else "")
        for row in rows
    ]
    filled = [any(column) for column in zip(*lines, strict=True)]
    for heading, show in zip(HEADINGS, filled, strict=True):
        if show:
            table.add_column(heading, justify="left" if heading == "method" else "right", no_wrap=True)
    for line in lines:
        table.add_row(*(cell for cell, show in zip(line, filled, strict=True) if show))
    console.print(table)
    if margin := next((row.margin for row in rows if row.margin is not None), None):
        text = f"✓ loses less than {100 * margin:g} points to dense, shown at 95 % (margin={margin:g}); p after Holm"
        console.print(text, style="dim", highlight=False, soft_wrap=True)
    console.print()


def _cells(row: Row, *, with_count: bool) -> tuple[str | Text, ...]:
    """Return the cells of an arm between its name and its kept mass. with_count: means of other tasks stand beside each
    other."""
    times = row.times
    return (
        formats.tokens(row.length),
        str(row.tasks) if with_count and row.tasks is not None else "",
        formats.number(row.density, ".3f"),
        formats.number(row.decode_density, ".3f"),
        _accuracy(row),
        _difference(row),
        formats.p_value(row.p_holm),
        formats.milliseconds(None if times is None else times.selection_ms),
        formats.milliseconds(row.total_ms),
        formats.number(None if times is None else times.speedup, ".2f"),
        formats.number(None if times is None else times.pct_ideal, ".0f"),
        formats.milliseconds(None if times is None else times.ttft_ms),
    )


def _show_tasks(console: Console, rows: Sequence[Row], averages: Sequence[Row]) -> None:
    """Print accuracy by task, a column per arm."""
    groups = {row.group: row for row in averages if row.task == AVERAGE}
    names = line_names(averages)
    tasks = list(dict.fromkeys(row.task for row in rows if row.group in groups))
    if not tasks:
        return
    room = console.width - max(map(len, tasks)) - 1
    full = room >= INTERVAL * len(groups)
    interval = ", with its 95 % interval" if full else ""
    question = question_title(averages[0].question)
    table = formats.plain_table(f"{averages[0].model}: accuracy (%) by task{interval}{question}")
    table.add_column("task", no_wrap=True)
    for row in groups.values():
        length = f"{formats.tokens(row.length)} tokens" if full else formats.tokens(row.length)
        sparsity = f" {row.sparsity:g}" if row.sparsity else ""
        table.add_column(formats.heading(f"{names[id(row)]}{sparsity}", length), justify="right", no_wrap=True)
    by_task = {(row.group, row.task): row for row in rows} | {(row.group, AVERAGE): row for row in groups.values()}
    for task in [*tasks, AVERAGE]:
        cells = [by_task.get((group, task)) for group in groups]
        texts = [Text() if row is None else _accuracy(row) for row in cells]
        style = "bold" if task == AVERAGE else None
        table.add_row(task, *(text if full else text.split(" ")[0] for text in texts), style=style)
    console.print(table)
    console.print()


def _accuracy(row: Row) -> Text:
    if row.score is None:
        return Text(row.status if row.task else "")
    low, high = (f"{100 * bound:.0f}" for bound in (row.score.accuracy_low, row.score.accuracy_high))
    return formats.with_interval(f"{row.score.percent:.1f}", f"{f'{low}–{high}':>6}")


def _difference(row: Row) -> str:
    if row.score is None or row.score.comparison is None:
        return ""
    return f"{100 * row.score.comparison.difference:+.1f}{'✓' if row.noninferior else ' '}"
