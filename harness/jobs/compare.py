"""``python -m harness job=compare``: every line of a study beside one of them, as a table, `compare_LINE.csv` and a figure."""

from __future__ import annotations

import re
from pathlib import Path

from rich.console import Console

from harness.core.settings import Settings
from harness.report.compare import COLUMNS, show, table
from harness.report.figures import compare as figure
from harness.report.leaderboard import write_csv
from harness.study.store import Store


def compare(settings: Settings, store: Store, console: Console) -> list[Path]:
    """Print the table, write CSV and figure into the study's folder. Raises UserError where the line isn't there, or alone."""
    rows = table(store, str(settings.options["to"] or settings.method))
    show(console, rows)
    name = re.sub(r"[^a-z0-9]+", "-", str(rows[0]["beside"]).lower()).strip("-")
    path = write_csv(store.folder / f"compare_{name}.csv", COLUMNS, rows)
    return [path, *figure.write(rows, store.folder, name)]
