"""The answer of job=choose in the terminal: a sentence, the methods within the bound, and what it leaves out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial

from rich.console import Console, JustifyMethod
from rich.text import Text

from harness.report.choose import Candidate, Choice, Loss, discordance
from harness.report.choose_text import TIMES, answer, bound_text, named, notes, points, where
from harness.report.terminal import formats
from harness.report.terminal.match_marks import marked_density
from harness.stats.power import power_noninferior, samples_for
from harness.study.command_settings import as_command_line

POWER = 0.8
"""The power at which the prompts are planned that would show a method to be within the bound."""
MISSING = "not measured"
TIED = "="
"""Written after the rank of what is not told apart from the first."""


def show_choice(console: Console, choice: Choice, others: Sequence[Choice] = (), lines: Sequence[str] = ()) -> None:
    """Print the answer of a choice, its tables and notes, and a sentence for each other device and set of tasks; lines: what
    else was measured elsewhere."""
    console.print(f"{answer(choice)}.", style="bold", highlight=False, soft_wrap=True)
    row = choice.candidates[0].row
    console.print(f"{row.model} at {row.length} tokens, {where(choice)}", highlight=False, soft_wrap=True)
    console.print()
    if choice.ranked:
        _show_ranked(console, choice)
    if choice.not_shown:
        _show_not_shown(console, choice)
    for note in notes(choice):
        _say(console, note)
    if others or lines:
        console.print()
        text = "Elsewhere, not compared with this (measured_on= shows another device, study= another study):"
        console.print(text, highlight=False, soft_wrap=True)
        for other in others:
            _say(console, f"{where(other)}: {answer(other)}.")
        for line in lines:
            _say(console, line)
    if choice.first is not None:
        console.print()
        _say(console, f"measure it again: python -m harness {as_command_line(choice.first.row.settings)}")


def _say(console: Console, text: str) -> None:
    console.print(text, style="dim", highlight=False, soft_wrap=True)


def _table(choice: Choice, above: str, *headings: str) -> formats.PlainTable:
    table = formats.PlainTable(above, keys=2)
    time = "TTFT" if choice.bound.by == "ttft" else "att."
    for heading in ("", "method", "dens", "% of\ndense", f"{time}\nms", "points lost\n(95 %)", *headings):
        named_column = heading == "method"
        justify: JustifyMethod = "left" if named_column else "right"
        table.add_column(heading, justify=justify, no_wrap=not named_column, overflow="fold")
    return table


def _cells(candidate: Candidate, mark: str, most: float | None) -> list[str | Text]:
    timing, share = candidate.timing, None
    if timing is not None and timing.share_range is not None:
        low, high = (f"{100 * value:.0f}" for value in timing.share_range)
        share = f"{100 * (timing.share or 0.0):.0f} {low if low == high else f'{low}–{high}'}"
    decode = candidate.row.decode_density
    name = candidate.name if decode is None else f"{candidate.name}, decoding density {decode:.3f}"
    return [
        mark,
        name,
        marked_density(candidate.row),
        Text(MISSING.replace(" ", "\n")) if share is None else share,
        "" if timing is None else formats.milliseconds(timing.ms),
        _interval(candidate.loss, most),
    ]


def _interval(loss: Loss | None, most: float | None = None) -> str:
    """Return points with their interval."""
    return "" if loss is None else f"{points(loss.points, most)} {points(loss.low):>5} to {points(loss.high, most)}"


def _most(choice: Choice) -> float | None:
    return choice.bound.most if choice.bound.of == "loss" else None


def _show_ranked(console: Console, choice: Choice) -> None:
    by_loss = not choice.bound.ranks_times
    order = "points lost" if by_loss else TIMES[choice.bound.by]
    headings = ["to the\nfirst"] if by_loss else []
    table = _table(choice, f"shown {bound_text(choice.bound)}, by {order}", "prompts", *headings)
    for rank, candidate in enumerate(choice.ranked, 1):
        cells = _cells(candidate, f"{rank}{TIED if candidate.tied else ' '}", _most(choice))
        cells.append(str(candidate.row.samples or ""))
        if by_loss:
            cells.append("" if candidate.to_first is None else points(candidate.to_first.points))
        table.add_row(*cells)
    table.show(console)
    what = "points lost" if by_loss else "time"
    if choice.tied:
        _say(console, f"{TIED} not told apart from the first in {what}: {', '.join(map(named, choice.tied))}")
    elif len(choice.ranked) > 1:
        _say(console, f"every other one is told apart from the first in {what}")
    _say(console, f"of {len(choice.candidates)} arms, the best of each name; a limit holds for its row alone")
    console.print()


def _show_not_shown(console: Console, choice: Choice) -> None:
    needs = ["prompts", "needs"] if choice.bound.of == "loss" else []
    table = _table(choice, f"within the bound as measured, not shown {bound_text(choice.bound)}", *needs)
    for candidate in choice.not_shown:
        cells = _cells(candidate, "", _most(choice))
        if needs:
            cells += [str(candidate.row.samples or ""), _needed(candidate, choice)]
        table.add_row(*cells)
    table.show(console)
    if needs:
        _say(console, f"needs: prompts that show it with power {POWER:g}, if it loses what it lost here")
    console.print()


def _needed(candidate: Candidate, choice: Choice) -> str:
    """Return how many prompts would show an arm to be within the bound, if its loss is the true one."""
    apart, loss = discordance(candidate, choice.candidates), candidate.loss
    margin = choice.bound.most / 100
    if apart is None or loss is None or not apart or loss.points / 100 >= margin:
        return ""
    difference = max(-apart, min(apart, -loss.points / 100))
    needed = samples_for(lru_cache(partial(power_noninferior, discordance=apart, margin=margin, difference=difference)), POWER)
    return "> 1 M" if needed is None else f"{needed:,}"
