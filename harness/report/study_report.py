"""The report of a study, made again from its records: leaderboard and pictures in its folder, tables in the terminal."""

from __future__ import annotations

from collections.abc import Set
from pathlib import Path

from rich.console import Console

from harness.report import leaderboard_csv, mass_rows
from harness.report.significance import MARGIN
from harness.report.terminal.accuracy_table import show_rows
from harness.study.integrity import check_study
from harness.study.store import Store


def report_study(store: Store, console: Console, *, margin: float = MARGIN, arms: Set[str] = frozenset()) -> list[Path]:
    """Write leaderboard and pictures of a study, print its tables, and return the paths of what was written.

    margin: as in `leaderboard_rows`. arms: ids of those that the table is of; empty: all. A study of kernels has rows of its
    own; one that holds the steps of a training alone has none. Raises RecordError for corrupt records.
    """
    check_study(store)  # also where a lost file leaves nothing to report
    if store.kernels.exists():
        return _report_kernels(store, console)
    if not any(file.exists() for file in (store.cells, store.latency, store.perplexity, store.mass)):
        return []
    from harness.report.figures import kept_mass, write_figures  # matplotlib takes a second to import

    path, rows = leaderboard_csv.write_leaderboard(store, margin)
    paths = [path, *write_figures(rows, store.folder)]
    show_rows(console, rows, arms)
    if masses := mass_rows.mass_rows(store):
        paths += [mass_rows.write_masses(store.folder / "kept_mass.csv", masses), *kept_mass.write(masses, store.folder)]
    return paths


def _report_kernels(store: Store, console: Console) -> list[Path]:
    from harness.report import kernel_rows
    from harness.report.figures import kernel_speed
    from harness.report.terminal.kernel_table import show_kernels

    path, rows = kernel_rows.write_kernel_leaderboard(store)
    paths = [path, *kernel_speed.write(rows, store.folder)]
    show_kernels(console, rows)
    return paths
