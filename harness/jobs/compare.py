"""``python -m harness job=compare``: every line of a study beside one of them, as a table, `compare_LINE.csv` and a figure."""

from __future__ import annotations

import re
from pathlib import Path

from harness.core.errors import UserError
from harness.core.settings import Settings
from harness.jobs.command_state import CommandState
from harness.jobs.studies import OpenStudy
from harness.report.compare import Comparisons, comparisons, write_pairs
from harness.report.csv_file import read_csv
from harness.report.figures import compare as figure
from harness.report.terminal.comparison_table import show_pairs
from harness.study.store import Store

ALWAYS = {"line", "beside", "difference"}
"""Columns that every table of comparisons has."""
LONGEST_NAME = 80
"""Letters that a line has in the names of files."""


def run(settings: Settings, study: OpenStudy, command: CommandState) -> int:
    """Print the table, and write CSV and figure into the study's folder. Returns 0. Raises UserError without records,
    or where the line isn't among them, or alone."""
    study.check_has_records(settings)
    compared = comparisons(study.store, str(settings.options["to"] or settings.method))
    show_pairs(command.console, compared.pairs, compared.left_out)
    command.print_written(write(compared, study.store.folder))
    return 0


def write(compared: Comparisons, folder: Path) -> list[Path]:
    """Write CSV and figures of comparisons into a folder, and return their paths."""
    pairs = compared.pairs
    name = re.sub(r"[^a-z0-9]+", "-", pairs[0].beside.lower()).strip("-")[:LONGEST_NAME] or "line"
    path = write_pairs(folder / f"compare_{name}.csv", pairs)
    return [path, *figure.write(pairs, folder, name, compared.left_out)]


def write_again(store: Store) -> tuple[list[Path], list[Path]]:
    """Write the comparisons of a study anew from its records. Returns the paths that were written, and those of comparisons
    that can't be made any more, as their line is gone or alone. Files of such names that are no comparisons are in neither."""
    written, stale = [], []
    for path in sorted(store.folder.glob("compare_*.csv")):
        rows = read_csv(path)
        if not rows or not set(rows[0]) >= ALWAYS:
            continue
        try:
            written += _again(store, rows[0]["beside"])
        except UserError:
            pictures = re.compile(rf"{re.escape(path.stem)}(_\d+)?\.png")
            stale += [path, *(picture for picture in store.folder.glob("*.png") if pictures.fullmatch(picture.name))]
    return written, [path for path in stale if path not in written]


def _again(store: Store, beside: str) -> list[Path]:
    """Write the comparisons beside a line again, and return their paths. Raises UserError where it is gone or alone."""
    compared = comparisons(store, beside)
    if compared.pairs[0].beside != beside:  # a line whose name has that one in it
        raise UserError(f"{beside}: no such line any more")
    return write(compared, store.folder)
