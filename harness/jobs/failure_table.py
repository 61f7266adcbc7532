"""What failed in a command, in one short table at its end: kinds, how many, which, and what to do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from rich.console import Console

from harness.measure.failures import Failure, FailureLog
from harness.report.terminal.formats import PlainTable
from harness.study.failures import KINDS

NAMES = 3
"""Arms that a cell of the table names; of more it has the number."""


def show_failures(console: Console, log: FailureLog) -> None:
    """Print what failed, and what that leaves without dense attention to compare with; nothing where nothing failed."""
    if log.failed:
        console.print()
        _table(list(log.failed.values())).show(console)
    if log.unpaired:
        _say(console, f"dense attention failed, so nothing to compare with: {_some(log.unpaired.values())}")
    if log.lost:
        left = f"; {log.skipped} more jobs were not begun" if log.skipped else ""
        _say(console, f"the device takes no more work of this process ({log.lost}){left}: run the same command again")


def _table(failures: Sequence[Failure]) -> PlainTable:
    """Return a line for each kind of failure, and whether this command has tried it."""
    table = PlainTable(f"{len(failures)} failed; a line of each, above or in its worker's log, says why")
    for heading in ("kind", "how many", "which", "what to do"):
        table.add_column(heading, justify="right" if heading == "how many" else "left", no_wrap=heading == "kind")
    for name, kind in KINDS.items():
        for tried in (True, False):
            chosen = [failure for failure in failures if (failure.kind, failure.tried) == (name, tried)]
            advice = kind.advice if tried else f"not tried again: {kind.advice}, then retry_failed=true"
            if chosen:
                table.add_row(kind.title, str(len(chosen)), _some(failure.arm for failure in chosen), advice)
    return table


def _some(names: Iterable[str]) -> str:
    """Return the first names, each with how often it is there, and how many others there are."""
    counts = Counter(names)
    first = [name if count == 1 else f"{name} ({count}×)" for name, count in list(counts.items())[:NAMES]]
    return "; ".join(first) + (f"; {len(counts) - NAMES} more" if len(counts) > NAMES else "")


def _say(console: Console, text: str) -> None:
    console.print(text, style="red", markup=False, highlight=False, soft_wrap=True)
