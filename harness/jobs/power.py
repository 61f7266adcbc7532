"""``python -m harness job=power``: how many samples a claim needs, as a table, `power.csv` and a figure."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from harness.core.settings import Settings
from harness.report.figures import power as figure
from harness.report.power import plan_samples, write_plan
from harness.report.terminal.power_table import show_samples_needed
from harness.study.store import Store


def power(settings: Settings, store: Store, console: Console) -> list[Path]:
    """Print the table, write CSV and figure into the study's folder. Raises UserError for settings out of range."""
    rows = plan_samples(settings, store)
    show_samples_needed(console, rows)
    path = write_plan(store.folder / "power.csv", rows)
    return [path, figure.write(rows, store.folder)]
