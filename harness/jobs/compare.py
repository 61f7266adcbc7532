"""``python -m harness job=compare``: every line of a study beside one of them, as a table, `compare_LINE.csv` and a figure."""

from __future__ import annotations

import re

from harness.core.settings import Settings
from harness.jobs.command_state import CommandState
from harness.jobs.studies import OpenStudy
from harness.report.compare import comparisons, write_pairs
from harness.report.figures import compare as figure
from harness.report.terminal.comparison_table import show_pairs

LONGEST_NAME = 80
"""Letters that a line has in the names of files."""


def run(settings: Settings, study: OpenStudy, command: CommandState) -> int:
    """Print the table, and write CSV and figure into the study's folder. Returns 0. Raises UserError without records,
    or where the line isn't among them, or alone."""
    study.check_has_records(settings)
    compared = comparisons(study.store, str(settings.options["to"] or settings.method))
    pairs = compared.pairs
    show_pairs(command.console, pairs, compared.left_out)
    name = re.sub(r"[^a-z0-9]+", "-", pairs[0].beside.lower()).strip("-")[:LONGEST_NAME] or "line"
    path = write_pairs(study.store.folder / f"compare_{name}.csv", pairs)
    command.print_written([path, *figure.write(pairs, study.store.folder, name, compared.left_out)])
    return 0
