"""``python -m harness job=paper``: the figures and tables of SeerAttention from recorded rows, published values beside
them."""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.core import checks
from harness.core.errors import UserError, did_you_mean
from harness.core.output import check_output
from harness.core.printable import printable
from harness.core.settings import Settings
from harness.jobs.command_state import CommandState
from harness.jobs.studies import OpenStudy
from harness.report.figures.paper.items import ITEMS

if TYPE_CHECKING:
    from harness.report.figures.paper.recorded import Recorded

ALL = "all"
"""The value of item= that stands for every item."""
FOLDER = "paper"
"""The folder in results= that the pictures go to."""
ENDINGS = ("png", "pdf", "csv")
"""Ends of the names of the files that an item has."""


def run(settings: Settings, study: OpenStudy, command: CommandState) -> int:
    """Write the pictures and values of the items that are asked for, and the checklist of all. Returns 0. Raises UserError
    for an item that there is not, for a study that is named, and where nothing was ever recorded or nothing can be
    written."""
    from harness.report.figures.paper.recorded import Recorded
    from harness.report.recorded_rows import studies_in

    names = items_of(settings.options["item"])
    page = _page(settings.options["page"])
    if "study" in settings.given:
        raise UserError(f"study={settings.study}: job=paper reads all studies in results=: leave study= out")
    stores = studies_in(settings.results)
    if not stores:
        raise UserError(f"results={settings.results}: no study there has records; measure something first, or name its folder")
    folder = settings.results / FOLDER
    check_output(f"results={settings.results}", folder)
    recorded = Recorded(stores)
    paths = _draw(names, recorded, folder, command)
    for problem in recorded.problems:
        print(f"warning: {printable(problem)}", file=sys.stderr)
    if page is not None:
        from harness.report.figures.paper.checklist import read_entries, write_page

        paths.append(write_page(page, read_entries(folder), folder))
    command.print_written(paths)
    return len(recorded.problems)


def items_of(setting: object) -> list[str]:
    """Return the names of the items that a setting stands for. Raises UserError, which lists all, for any other."""
    if setting == ALL:
        return list(ITEMS)
    if not isinstance(setting, str) or setting not in ITEMS:
        shown = "null" if setting is None else setting
        close = did_you_mean(str(setting), [*ITEMS, ALL])
        raise UserError(f"item={shown} is not known{close}; choose one of: {ALL}, {', '.join(ITEMS)}")
    return [setting]


def _page(setting: object) -> Path | None:
    """Return the page that the checklist goes into. Raises UserError for one that is not there."""
    if setting is None:
        return None
    path = Path(checks.text("page", setting)).expanduser()
    if not path.is_file():
        raise UserError(f"page={setting}: no such file; name a Markdown file that the checklist goes into")
    return path


def _draw(names: Sequence[str], recorded: Recorded, folder: Path, command: CommandState) -> list[Path]:
    """Draw items, write the checklist, remove what an earlier call left of them, and return the paths of what was written."""
    from harness.report.figures.paper.checklist import entry_of, write_entries
    from harness.report.figures.paper.drawing import named_apart, write_values
    from harness.report.figures.paper.sheet import save

    drawn, paths = {}, []
    for name in names:
        with command.console.status(f"drawing {name}"):  # reading the records takes seconds; only a terminal shows it
            drawings = ITEMS[name].draw(recorded)
        drawings = named_apart(drawings)
        drawn[name] = [entry_of(ITEMS[name], drawing) for drawing in drawings]
        for drawing in drawings:
            file = f"{name}{drawing.suffix}"
            paths += [*save(drawing.figure, folder, file), write_values(folder / f"{file}.csv", drawing)]
        _remove_stale(name, folder, paths)
    return [*paths, *write_entries(folder, drawn)]


def _remove_stale(name: str, folder: Path, paths: Collection[Path]) -> None:
    """Remove the files of an item that the checklist of an earlier call names, all but `paths`. Any other file is someone
    else's, whatever it is called, and stays."""
    from harness.report.figures.paper.checklist import read_entries

    own = re.compile(rf"{name}(_[a-z0-9-]+)?")
    for entry in read_entries(folder):
        if entry.item == name and own.fullmatch(entry.file):
            for old in (folder / f"{entry.file}.{ending}" for ending in ENDINGS):
                if old not in paths and old.is_file():
                    old.unlink()
