"""``python -m harness job=prune``: arms taken out of a study, once that was shown and asked, and brought back by a command."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from harness.core import checks
from harness.core.errors import UserError
from harness.core.settings import Settings
from harness.jobs import compare
from harness.jobs.command_state import CommandState
from harness.jobs.studies import OpenStudy
from harness.report.terminal.prune_table import show_selection
from harness.study.full_rows import arm_name
from harness.study.pruning import bring_back, finish, forget, is_back, keep_derived, said_of, take_out, taken_out, undo_command
from harness.study.selection import Selection, select, selectors
from harness.study.store import Record, Store


def run(settings: Settings, study: OpenStudy, command: CommandState) -> int:
    """Show what goes, ask, take it out and make the report anew; or bring back what was taken out. Returns 0. Raises UserError
    where nothing is chosen or left, and where there is no terminal to ask at."""
    store = study.store
    if settings.options["undo"] is not None:
        last = checks.whole_number("undo", settings.options["undo"], 1)
        if others := " ".join(selector.text for selector in selectors(settings)):
            raise UserError(f"undo={last}: brings back all that went under this number, not only {others}: leave that out")
        _bring_back(last, store, command)
        _report(settings, study, command)
        forget(store, last)
        return 0
    chosen = list(selectors(settings))
    if not chosen:
        raise UserError("nothing says what to take out: give method=, with sparsity=, length=, method.KNOB=, ...")
    asked = " ".join(selector.text for selector in chosen)
    number = finish(store, asked)  # that this command was in the middle of
    if number is None:
        study.check_has_records(settings)
        selection = select(store, chosen)
        number = _out_already(selection, store, asked)
    if number is None:
        _check(selection, store, asked)
        show_selection(command.console, selection, store)
        if settings.options["ask"] and not _agreed(len(selection.gone) or len(selection.cases)):
            _say(command, "nothing was changed")
            return 0
        number = take_out(store, selection.removed, asked)
    _say(command, f"bring it back: {undo_command(store, number)}")
    stale = _report(settings, study, command)
    keep_derived(store, number, stale)
    for path in stale:
        _say(command, f"removed {path}: its line is gone")
    return 0


def _bring_back(number: int, store: Store, command: CommandState) -> None:
    """Bring back what was taken out under a number, and say what it is."""
    folder = taken_out(store).get(number)
    if folder is None and is_back(store, number):  # the process of this command died while it made the report
        return
    what = "" if folder is None else said_of(folder)
    bring_back(store, number)
    _say(command, f"back in {store.folder}: {what}")


def _say(command: CommandState, text: str) -> None:
    command.console.print(text, highlight=False, soft_wrap=True)


def _report(settings: Settings, study: OpenStudy, command: CommandState) -> list[Path]:
    """Make leaderboard, pictures and comparisons anew from what the records are now, unless the settings say not to. Returns
    the paths of comparisons that can't be made any more."""
    study.check_whole()
    if not settings.report:
        return []
    written = study.write_report(Console(quiet=True))
    compared, stale = compare.write_again(study.store)
    command.print_written([*written, *compared])
    if (study.store.folder / "power.csv").exists():
        _say(command, "power.csv and power.png are of before: make them again with job=power")
    return stale


def _out_already(selection: Selection, store: Store, asked: str) -> int | None:
    """Return the number under which the same was taken out last, where the study holds nothing of it: its process died while it
    made the report, or the command was given twice."""
    last = max(taken_out(store), default=None)
    if last is None or selection.gone or selection.cases or said_of(taken_out(store)[last]) != asked:
        return None
    return last


def _check(selection: Selection, store: Store, asked: str) -> None:
    """Raise UserError where nothing is chosen, with what there is, or where nothing would be left."""
    if not selection.gone and not selection.cases:
        raise UserError(f"{asked}: study={store.folder.name} has no such arm; it has {_there(selection.left, store)}")
    others = len(selection.cases) < len({record["case"] for record in store.kernels.read()})
    if not selection.left and not others:
        raise UserError(f"{asked}: that is all of study={store.folder.name}: move its folder away instead, {store.folder}")


def _there(arms: Mapping[str, Sequence[Record]], store: Store) -> str:
    """Return the arms that there are, by name, and how many of each; of kernels the methods of their cases."""
    if cases := sorted({record["identity"]["method"] for record in store.kernels.read()}):
        return f"cases of kernels with method={', '.join(filter(None, cases))}"
    counts = Counter(arm_name(records[0]["identity"]) for records in arms.values())
    return "; ".join(f"{line} ({count})" if count > 1 else line for line, count in sorted(counts.items())) or "none"


def _agreed(count: int) -> bool:
    """Ask at the terminal, and return whether the answer was yes. Raises UserError where there is none."""
    if not sys.stdin.isatty():
        raise UserError("job=prune asks first, and there is no terminal to ask at: ask=false takes this out")
    try:
        answer = input(f"take {'it' if count == 1 else f'these {count}'} out? [y/N] ")
    except EOFError:
        return False
    return answer.strip().lower() in ("y", "yes")
