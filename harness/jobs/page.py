"""``python -m harness job=page``: one HTML file with the rows of all studies or of one, to look at in a browser."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.core.errors import UserError
from harness.core.printable import printable
from harness.core.settings import Settings
from harness.jobs.command_state import CommandState
from harness.jobs.every_study import every_store, out_file, read_every, why_empty
from harness.jobs.studies import OpenStudy
from harness.report.joined import JoinedRow, in_order
from harness.report.leaderboard import leaderboard_rows
from harness.report.page import claims
from harness.report.page.html import check_libraries, page_content, write_page
from harness.report.page.pictures import read_maps
from harness.report.page.rows import page_rows
from harness.report.page.versions import read_versions
from harness.study.store import Store

NAME = "page.html"
"""The file, in the folder of the studies or of the one study."""


def run(settings: Settings, study: OpenStudy, command: CommandState) -> int:
    """Write the page. Returns how many studies and maps could not be read, each of which is named in a line. Raises UserError
    for bad settings, where a library is missing, and where no study has rows."""
    check_libraries()
    one = "study" in settings.given
    if one:
        study.check_has_records(settings)
    folder = settings.folder if one else settings.results
    stores = [study.store] if one else every_store(settings.results)
    out = out_file(folder / NAME if settings.options["out"] is None else settings.options["out"], NAME)
    damaged: list[str] = []

    def read(store: Store) -> list[JoinedRow]:
        return page_rows(leaderboard_rows(store, settings.margin))

    rows = in_order(read_every(stores, read, settings, command, damaged))
    if not rows:
        why = why_empty(stores, damaged) if not one else "it can't be read" if damaged else "it has no rows of models"
        place = f"study={settings.study}" if one else f"results={settings.results}"
        raise UserError(f"{place}: {why}; {out} stays as it is")
    problems: list[str] = []
    content = page_content(
        rows,
        _versions([store for store in stores if store.folder.name not in damaged], problems),
        None if one else claims.read_claims(settings.results / claims.NAME, _way(out.parent, settings.results)),
        read_maps((store.folder for store in stores), problems),
        settings.study if one else "",
    )
    for problem in problems:
        print(f"warning: left out: {printable(problem)}", file=sys.stderr)
    write_page(out, content)
    size = out.stat().st_size / 1e6
    command.console.print(
        f"{len(rows)} rows, {size:.1f} MB: open it in a browser, it needs no network", highlight=False, soft_wrap=True
    )
    command.print_written([out])
    return len(damaged) + len(problems)


def _versions(stores: Sequence[Store], problems: list[str]) -> list[dict[str, Any]]:
    """Return what studies were measured with. Those whose records can't be read, as of kernels, are left out, and a line on
    each is added to `problems`."""
    entries: list[dict[str, Any]] = []
    for store in stores:
        try:
            entries += read_versions(store)
        except UserError as error:
            problems.append(f"versions of study={store.folder.name}: {error}")
    return entries


def _way(start: Path, folder: Path) -> str:
    """Return how links of a page lead to a folder, nothing where the page lies in it."""
    way = os.path.relpath(folder.resolve(), start.resolve())
    return "" if way == os.curdir else Path(way).as_posix()
