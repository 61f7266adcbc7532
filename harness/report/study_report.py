"""The report of a study, made again from its records: leaderboard and pictures in its folder, tables in the terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from harness.core.mistakes import in_words, origin
from harness.report import gate_curve, leaderboard_csv, mass_rows
from harness.report.rows import Row
from harness.report.significance import MARGIN
from harness.report.stale import GATE_CURVE, KEPT_MASS, remove_named, remove_stale
from harness.report.terminal.accuracy_table import show_rows
from harness.study.integrity import check_study
from harness.study.store import Store

if TYPE_CHECKING:
    from harness.report.kernel_rows import KernelRow


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
    path, rows = leaderboard_csv.write_leaderboard(store, margin)
    paths = [path, *_drawn(console, lambda: _figures(rows, store.folder))]
    show_rows(console, rows, arms)
    if points := gate_curve.curve_points(store, rows):
        paths.append(gate_curve.write_points(store.folder / "gate_curve.csv", points))
        paths += _drawn(console, lambda: _gate_curves(points, rows, store.folder))
    else:
        remove_named(store.folder, ["gate_curve.csv"])
        remove_stale(store.folder, GATE_CURVE, ())
    if masses := mass_rows.mass_rows(store):
        paths.append(mass_rows.write_masses(store.folder / "kept_mass.csv", masses))
        paths += _drawn(console, lambda: _mass_figures(masses, store.folder))
    else:
        remove_named(store.folder, ["kept_mass.csv"])
        remove_stale(store.folder, KEPT_MASS, ())
    return paths


def _figures(rows: Sequence[Row], folder: Path) -> list[Path]:
    from harness.report.figures import write_figures  # matplotlib takes a second to import

    return write_figures(rows, folder)


def _gate_curves(points: Sequence[gate_curve.CurvePoint], rows: Sequence[Row], folder: Path) -> list[Path]:
    from harness.report.figures import gate_curve as picture

    return picture.write(points, rows, folder)


def _mass_figures(masses: Sequence[mass_rows.MassRow], folder: Path) -> list[Path]:
    from harness.report.figures import kept_mass

    return kept_mass.write(masses, folder)


def _kernel_figures(rows: Sequence[KernelRow], folder: Path) -> list[Path]:
    from harness.report.figures import kernel_speed

    return kernel_speed.write(rows, folder)


def _drawn(console: Console, draw: Callable[[], list[Path]]) -> list[Path]:
    """Return the paths of pictures. Where what draws them can't be imported there are none, and a line says so: leaderboard and
    table need nothing of it."""
    try:
        return draw()
    except Exception as error:
        if not origin(error).failing_package:
            raise
        console.print(f"no pictures: {in_words(error)}", style="red", markup=False, highlight=False, soft_wrap=True)
        return []


def _report_kernels(store: Store, console: Console) -> list[Path]:
    from harness.report import kernel_rows
    from harness.report.terminal.kernel_table import show_kernels

    path, rows = kernel_rows.write_kernel_leaderboard(store)
    paths = [path, *_drawn(console, lambda: _kernel_figures(rows, store.folder))]
    show_kernels(console, rows)
    return paths
