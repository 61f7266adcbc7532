"""Every study of a folder, read one after the other: one that is damaged is said, and left out of what is made of all."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from harness.core import checks
from harness.core.errors import UserError
from harness.core.output import check_output
from harness.core.printable import printable
from harness.core.progress import progress_bar
from harness.core.settings import Settings
from harness.jobs.command_state import CommandState
from harness.report.joined import JoinedRow
from harness.report.recorded_rows import studies_in
from harness.study.integrity import left_out
from harness.study.store import RecordError, Store


def every_store(results: Path) -> list[Store]:
    """Return the studies of a folder, by name: also those that have a leaderboard and have lost their records. Raises UserError
    for none."""
    lost = [path.parent for path in results.glob("*/leaderboard.csv")] if results.is_dir() else []
    stores = [Store(folder) for folder in sorted({*lost, *(store.folder for store in studies_in(results))})]
    if not stores:
        raise UserError(f"results={results}: no study there has records; measure something first, or name its folder")
    return stores


def read_every(
    stores: Sequence[Store],
    read: Callable[[Store], list[JoinedRow]],
    settings: Settings,
    command: CommandState,
    damaged: list[str],
) -> Iterator[JoinedRow]:
    """Yield the rows that `read` returns of one study after the other, whose records are read one study at a time. A study that
    can't be read is said, added to `damaged`, and left out; one of kernels has no such rows."""
    with progress_bar(command.console, settings.progress) as bar:
        task = bar.add_task("studies", total=len(stores))
        for store in stores:
            name = store.folder.name
            bar.update(task, description=name)
            try:
                rows = [] if store.kernels.exists() else read(store)
                notes = left_out(store)
                if (store.folder / "leaderboard.csv").exists() and not any(file.read() for file in store.measured()):
                    raise RecordError("it has a leaderboard, and no records to make it of")
            except (UserError, OSError) as error:
                damaged.append(name)
                rows, notes = [], [f"study={name} is left out: {error}"]
            for note in notes:
                print(f"warning: {printable(note)}", file=sys.stderr)
            yield from rows
            bar.advance(task)


def out_file(value: object, example: str) -> Path:
    """Return the file that the setting `out` names. example: a name for one. Raises UserError where it could not be written."""
    path = Path(checks.text("out", value)).expanduser()
    if path.is_dir():
        raise UserError(f"out={value}: a folder; name a file in it, such as {path / example}")
    check_output(f"out={value}", path.parent)
    return path


def why_empty(stores: Sequence[Store], damaged: Sequence[str]) -> str:
    """Return why there is no row."""
    return "none of its studies can be read" if len(damaged) == len(stores) else "its studies have no rows of models"
