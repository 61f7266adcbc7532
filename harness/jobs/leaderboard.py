"""``python -m harness job=leaderboard``: the rows of all studies in one file, made again from their records."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from harness.core import checks
from harness.core.errors import UserError
from harness.core.output import check_output
from harness.core.printable import printable
from harness.core.progress import progress_bar
from harness.core.settings import Settings
from harness.jobs.command_state import CommandState
from harness.jobs.studies import OpenStudy
from harness.report.joined import KINDS, JoinedRow, in_order, study_rows, write_joined
from harness.report.recorded_rows import studies_in
from harness.study.integrity import left_out
from harness.study.store import RecordError, Store


def run(settings: Settings, study: OpenStudy, command: CommandState) -> int:
    """Write the joined leaderboard. Returns how many studies could not be read, each of which is named in a line. Raises
    UserError for bad settings, and where no study has rows."""
    if "study" in settings.given:
        raise UserError(f"study={settings.study}: job=leaderboard joins every study of results=: leave study= out")
    out = _out(settings.options["out"])
    stores = _studies(settings.results)
    if not stores:
        raise UserError(f"results={settings.results}: no study there has records; measure something first, or name its folder")
    damaged: list[str] = []
    rows = in_order(_rows(stores, settings, command, damaged))
    if not rows:
        raise UserError(f"results={settings.results}: {_why_empty(len(stores), len(damaged))}; {out} stays as it is")
    write_joined(out, rows)
    kinds, studies = Counter(row["kind"] for row in rows), len({row["study"] for row in rows})
    counted = ", ".join(f"{kinds[kind]} {kind}" for kind in KINDS if kinds[kind])
    of = f"{studies} {'study' if studies == 1 else 'studies'}"
    command.console.print(f"{len(rows)} rows of {of}: {counted}", highlight=False, soft_wrap=True)
    command.print_written([out])
    return len(damaged)


def _rows(stores: Sequence[Store], settings: Settings, command: CommandState, damaged: list[str]) -> Iterator[JoinedRow]:
    """Yield the rows of one study after the other, whose records are read one study at a time. A study that can't be read is
    said, added to `damaged`, and left out; one of kernels has no such rows."""
    with progress_bar(command.console, settings.progress) as bar:
        task = bar.add_task("studies", total=len(stores))
        for store in stores:
            name = store.folder.name
            bar.update(task, description=name)
            try:
                rows = [] if store.kernels.exists() else study_rows(store, settings.margin)
                notes = left_out(store)
                if not rows and not store.kernels.exists() and (store.folder / "leaderboard.csv").exists():
                    raise RecordError("it has a leaderboard, and no records to make it of")
            except (UserError, OSError) as error:
                damaged.append(name)
                rows, notes = [], [f"study={name} is left out: {error}"]
            for note in notes:
                print(f"warning: {printable(note)}", file=sys.stderr)
            yield from rows
            bar.advance(task)


def _studies(results: Path) -> list[Store]:
    """Return the studies of a folder, by name: also those that have a leaderboard and have lost their records."""
    lost = [path.parent for path in results.glob("*/leaderboard.csv")] if results.is_dir() else []
    return [Store(folder) for folder in sorted({*lost, *(store.folder for store in studies_in(results))})]


def _out(value: object) -> Path:
    """Return the file to write. Raises UserError where it could not be written."""
    path = Path(checks.text("out", value)).expanduser()
    if path.is_dir():
        raise UserError(f"out={value}: a folder; name a file in it, such as {path / 'leaderboard.csv'}")
    check_output(f"out={value}", path.parent)
    return path


def _why_empty(studies: int, damaged: int) -> str:
    """Return why there is no row."""
    return "none of its studies can be read" if damaged == studies else "its studies have no rows of models"
