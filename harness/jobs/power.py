"""``python -m harness job=power``: how many samples a claim about accuracy needs: a table, power.csv and power.png."""

from __future__ import annotations

from rich.console import Console

from harness.core.settings import Settings
from harness.jobs.studies import OpenStudy, print_written
from harness.report.power import plan_samples


def run(settings: Settings, study: OpenStudy, console: Console) -> int:
    """Write table and picture into the study's folder. Returns 0. Raises UserError for settings out of range."""
    print_written(console, plan_samples(settings, study.store, console))
    return 0
