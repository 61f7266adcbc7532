"""``python -m harness job=power``: how many samples a claim about accuracy needs: a table, power.csv and power.png."""

from __future__ import annotations

from harness.core.settings import Settings
from harness.jobs.command_state import CommandState
from harness.jobs.studies import OpenStudy
from harness.report.power import plan_samples


def run(settings: Settings, study: OpenStudy, command: CommandState) -> int:
    """Write table and picture into the study's folder. Returns 0. Raises UserError for settings out of range."""
    command.print_written(plan_samples(settings, study.store, command.console))
    return 0
