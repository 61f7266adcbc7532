"""The report of a study, made again from its records: leaderboard and pictures in its folder, tables in the terminal."""

from __future__ import annotations

import re
from collections.abc import Set
from pathlib import Path

from rich.console import Console

from harness.core.settings import Settings
from harness.report import compare, kernel_rows, leaderboard_csv, mass_rows, power
from harness.report.significance import MARGIN
from harness.report.terminal.accuracy_table import show_rows
from harness.report.terminal.comparison_table import show_pairs
from harness.report.terminal.kernel_table import show_kernels
from harness.report.terminal.power_table import show_samples_needed
from harness.study.store import Store

# The figures are imported by what draws them: matplotlib takes a second, and a study of training alone has none.


def report_study(store: Store, console: Console, *, margin: float = MARGIN, arms: Set[str] = frozenset()) -> list[Path]:
    """Write leaderboard and pictures of a study, print its tables, and return the paths of what was written.

    margin: as in `leaderboard_rows`. arms: ids of those that the table is of; empty: all. A study of kernels has rows of its
    own; one that holds the steps of a training alone has none. Raises RecordError for corrupt records.
    """
    if store.kernels.exists():
        return _report_kernels(store, console)
    if not any(file.exists() for file in (store.cells, store.latency, store.perplexity, store.mass)):
        return []
    from harness.report.figures import kept_mass, write_figures

    path, rows = leaderboard_csv.write_leaderboard(store, margin)
    paths = [path, *write_figures(rows, store.folder)]
    show_rows(console, rows, arms)
    if masses := mass_rows.mass_rows(store):
        paths += [mass_rows.write_masses(store.folder / "kept_mass.csv", masses), *kept_mass.write(masses, store.folder)]
    return paths


def _report_kernels(store: Store, console: Console) -> list[Path]:
    from harness.report.figures import kernel_speed

    path, rows = kernel_rows.write_kernel_leaderboard(store)
    paths = [path, *kernel_speed.write(rows, store.folder)]
    show_kernels(console, rows)
    return paths


def report_comparison(store: Store, console: Console, line: str) -> list[Path]:
    """Compare every line of a study with one (a name, or a part of one): print tables, write `compare_LINE.csv` and pictures,
    and return their paths. Raises UserError where the line isn't there, or alone."""
    from harness.report.figures import compare as figure

    pairs = compare.compare_lines(store, line)
    show_pairs(console, pairs)
    name = re.sub(r"[^a-z0-9]+", "-", pairs[0].beside.lower()).strip("-")
    path = compare.write_pairs(store.folder / f"compare_{name}.csv", pairs)
    return [path, *figure.write(pairs, store.folder, name)]


def report_power(settings: Settings, store: Store, console: Console) -> list[Path]:
    """Print how many samples the claims of the settings need, write `power.csv` and `power.png`, and return their paths. Raises
    UserError for settings out of range."""
    from harness.report.figures import power as figure

    rows = power.plan_samples(settings, store)
    show_samples_needed(console, rows)
    path = power.write_plan(store.folder / "power.csv", rows)
    return [path, figure.write(rows, store.folder)]
