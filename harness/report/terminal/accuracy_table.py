"""The table in the terminal: what was measured, accuracy and time of an arm in one line."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence, Set

from rich.console import Console
from rich.text import Text

from harness.report.common_tasks import compared_rows
from harness.report.lines import line_names
from harness.report.notes import count_range
from harness.report.rescored import with_comparisons
from harness.report.row_texts import question_title
from harness.report.rows import Row
from harness.report.significance import MARGIN
from harness.report.terminal import formats
from harness.report.terminal.decode_table import show_decoding
from harness.report.terminal.match_marks import explain_marks, marked_decode_density, marked_density
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
    "none\nms",
    "rest\nms",
    "limit",
    "kept\nmass %",
)
"""Columns of the table of arms; times are per attention layer call. Δ dense, in points, and p (after Holm, over all averages of
the model and length) compare with dense on the same samples; ✓: shown to lose less than the margin."""
INTERVAL = 13
"""Characters of a column of accuracies with their intervals, and the space after it. Where there is no room for intervals, they
stay in the leaderboard."""
PREFILL_NOTES = (
    "none: a prefill without attention, timed in turns with dense and the method",
    "limit: dense TTFT ÷ none, in the row's own rounds; what is beyond is noise",
    "rest: TTFT less the attention layers × total; it differs from none where",
    "a layer alone takes another time than within a prefill",
)
"""What the columns of a whole prefill mean. They are shown where no row has an accuracy."""
SCORE = 5
"""Characters of an accuracy in per cent."""
FEW = 8
"""Up to so many arms, their tasks are shown one by one too."""

Apart = tuple[str, str, str, str]
"""Model, device, when the question was asked, and the set of prompts: what doesn't compare stands in tables of its own."""


def show_rows(console: Console, rows: Sequence[Row], arms: Set[str]) -> None:
    """Print the average and latency rows of `arms` (ids; empty: all), the tasks of few arms, and what went wrong."""
    console.print()
    shown = [row for row in rows if not arms or row.arm in arms]
    show_perplexities(console, [row for row in shown if row.task == PERPLEXITY])
    compared = compared_rows(shown)
    by_group: dict[str | None, list[Row]] = defaultdict(list)
    margin = next((row.margin for row in shown if row.margin is not None), MARGIN)
    for row in with_comparisons(compared.averages, compared.tasks, margin):
        by_group[row.group].append(row)
    averages = [same for row in shown if row.task in (AVERAGE, "") for same in by_group.get(row.group, [row])]
    if not averages and not any(row.task == PERPLEXITY for row in shown):
        console.print("no finished cells yet")
        return
    for key in dict.fromkeys(map(_apart, averages)):
        members = [row for row in averages if _apart(row) == key]
        if len(members) <= FEW:
            _show_tasks(console, [*compared.tasks, *_alone(shown, compared.tasks)], members)
        _show_arms(console, members)
        show_decoding(console, members)
    names = line_names([*compared.left_out, *shown])
    for row in compared.left_out:
        where = f"{names[id(row)]} at {row.length}{question_title(row.question)}"
        text = f"not comparable: {where}: its average is over other tasks or prompts than most have ({row.reason})"
        console.print(text, style="yellow", markup=False, soft_wrap=True)
    for row in shown:
        if row.status != Status.OK and row.task != AVERAGE:
            style = "red" if row.status == Status.FAILED else "yellow"
            where = f"{row.model}, {names[id(row)]} at {row.length}, {row.task}{question_title(row.question)}"
            console.print(f"{row.status}: {where}: {row.reason}", style=style, markup=False, soft_wrap=True)


def _apart(row: Row) -> Apart:
    return row.model, row.device, question_title(row.question), row.prompt_set


def _alone(rows: Sequence[Row], compared: Sequence[Row]) -> list[Row]:
    """Return the rows of single tasks of averages that stand beside no other: of arms that lack tasks, or failed in one."""
    groups = {row.group for row in compared}
    return [row for row in rows if row.task not in (AVERAGE, PERPLEXITY, "") and row.group not in groups]


def _show_arms(console: Console, rows: Sequence[Row]) -> None:
    """Print accuracy (mean over tasks) and times, a line per arm; columns that nobody measured are left out."""
    above = f"{rows[0].model} on {rows[0].device}{question_title(rows[0].question)}{_prompts(rows)}"
    names = line_names(rows)
    counts_differ = len({row.tasks for row in rows if row.task == AVERAGE}) > 1
    only_masses = all(row.score is None and row.times is None for row in rows)
    only_times = all(row.score is None for row in rows) and any(row.times and row.times.ttft_limit for row in rows)
    lines = [
        (
            names[id(row)],
            *_cells(row, with_count=counts_differ),
            *(_prefill_cells(row) if only_times else ("", "", "")),
            formats.percent(row.kept_mass) if only_masses else "",
        )
        for row in rows
    ]
    filled = [any(column) for column in zip(*lines, strict=True)]
    table = formats.PlainTable(above, keys=sum(filled[: HEADINGS.index("dens") + 1]))
    for heading, show in zip(HEADINGS, filled, strict=True):
        if show:
            named = heading == "method"  # a long name takes several lines rather than the room of headings
            table.add_column(heading, justify="left" if named else "right", no_wrap=not named)
    for line in lines:
        table.add_row(*(cell for cell, show in zip(line, filled, strict=True) if show))
    table.show(console)
    explain_marks(console, rows)
    if only_times:
        for note in PREFILL_NOTES:
            console.print(note, style="dim", highlight=False, soft_wrap=True)
    reasons = [row.reason for row in rows if row.times is not None and row.score is None]
    for notice in dict.fromkeys(part for reason in reasons for part in reason.split("; ") if part):
        console.print(notice, style="dim", markup=False, highlight=False, soft_wrap=True)
    if margin := next((row.margin for row in rows if row.margin is not None), None):
        console.print(verdict_note(rows, margin), style="dim", highlight=False, soft_wrap=True)
    console.print()


def verdict_note(rows: Sequence[Row], margin: float) -> str:
    """Return what ✓ means where a row has one, else that none is shown to lose less than the margin."""
    claim = f"to lose less than {100 * margin:g} points (margin={margin:g}); p is Holm's"
    return f"{'✓' if any(row.noninferior for row in rows) else 'no row is'} shown at 95 % {claim}"


def _prompts(rows: Sequence[Row], unit: str = "") -> str:
    """Return ", N prompts" for the rows of a table that have accuracies: the same ones at each length. unit: said after it."""
    counts = [row.samples for row in rows if row.score is not None and row.task != ""]
    plural = "" if set(counts) == {1} else "s"
    return f", {count_range(counts, '–')} prompt{plural}{unit}" if counts else ""


def _cells(row: Row, *, with_count: bool) -> tuple[str | Text, ...]:
    """Return the cells of an arm between its name and its kept mass. with_count: means of other tasks stand beside each
    other."""
    times = row.times
    return (
        formats.tokens(row.length),
        str(row.tasks) if with_count and row.tasks is not None else "",
        marked_density(row),
        marked_decode_density(row),
        _accuracy(row),
        _difference(row),
        formats.p_value(row.p_holm),
        formats.milliseconds(None if times is None else times.selection_ms),
        formats.milliseconds(row.total_ms),
        formats.number(None if times is None else times.speedup, ".2f"),
        formats.number(None if times is None else times.pct_ideal, ".0f"),
        formats.milliseconds(None if times is None else times.ttft_ms),
    )


def _prefill_cells(row: Row) -> tuple[str, str, str]:
    """Return the cells of an arm on its whole prefill: without attention, what is left by subtraction, and the limit."""
    if row.times is None:
        return "", "", ""
    rest = row.times.rest_ms
    return (
        formats.milliseconds(row.times.no_attention_ttft_ms),
        f"{rest:.0f}" if rest is not None and rest < 0 else formats.milliseconds(rest),
        formats.number(row.times.ttft_limit, ".2f"),
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
    prompt_set = averages[0].prompt_set
    by_task = {(row.group, row.task): row for row in rows if row.prompt_set in (prompt_set, "")}
    interval = ", 95 % intervals" if full else ""
    prompts = _prompts([row for row in by_task.values() if row.group in groups], " a task")
    question = question_title(averages[0].question)
    table = formats.PlainTable(f"{averages[0].model}: accuracy (%) by task{interval}{prompts}{question}")
    table.add_column("task", no_wrap=True)
    for row in groups.values():
        length = f"{formats.tokens(row.length)} tokens" if full else formats.tokens(row.length)
        density = f"density {marked_density(row)}" if row.sparsity else ""
        heading = formats.heading(names[id(row)], *filter(None, (density, length)))
        table.add_column(heading, justify="right", vertical="bottom", min_width=INTERVAL - 1 if full else SCORE)
    by_task |= {(row.group, AVERAGE): row for row in groups.values()}
    for task in [*tasks, AVERAGE]:
        cells = [by_task.get((group, task)) for group in groups]
        texts = [Text() if row is None else _accuracy(row) for row in cells]
        style = "bold" if task == AVERAGE else None
        table.add_row(task, *(text if full else text.split(" ")[0] for text in texts), style=style)
    table.show(console)
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
