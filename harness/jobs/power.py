"""``python -m harness job=power``: how many samples a claim about accuracy needs: a table, power.csv and power.png."""

from __future__ import annotations

from harness.core.settings import Settings
from harness.jobs.command_state import CommandState
from harness.jobs.studies import OpenStudy
from harness.report.figures import power as figure
from harness.report.power import plan_samples, write_plan
from harness.report.terminal.power_table import show_samples_needed


def run(settings: Settings, study: OpenStudy, command: CommandState) -> int:
    """Write table and picture into the study's folder. Returns 0. Raises UserError for settings out of range."""
    if settings.options["discordance"] is None and settings.options["accuracy"] is None:
        study.check_whole()
    rows = plan_samples(settings, study.store)
    show_samples_needed(command.console, rows)
    folder = study.store.folder
    command.print_written([write_plan(folder / "power.csv", rows), figure.write(rows, folder)])
    return 0
