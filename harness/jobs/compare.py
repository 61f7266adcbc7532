"""``python -m harness job=compare``: every line of a study beside one of them, as a table, `compare_LINE.csv` and a figure."""

from __future__ import annotations

import re
from pathlib import Path

from rich.console import Console

from harness.core.settings import Settings
from harness.report.compare import compare_lines, write_pairs
from harness.report.figures import compare as figure
from harness.report.terminal.comparison_table import show_pairs
from harness.study.store import Store


def compare(settings: Settings, store: Store, console: Console) -> list[Path]:
    """Print the table, write CSV and figure into the study's folder. Raises UserError where the line isn't there, or alone."""
    pairs = compare_lines(store, str(settings.options["to"] or settings.method))
    show_pairs(console, pairs)
    name = re.sub(r"[^a-z0-9]+", "-", pairs[0].beside.lower()).strip("-")
    path = write_pairs(store.folder / f"compare_{name}.csv", pairs)
    return [path, *figure.write(pairs, store.folder, name)]
