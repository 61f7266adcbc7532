"""``python -m harness job=report``: leaderboard.csv and the figures of a study, made again from its records."""

from __future__ import annotations

from harness.core.settings import Settings
from harness.jobs.command_state import CommandState
from harness.jobs.studies import OpenStudy


def run(settings: Settings, study: OpenStudy, command: CommandState) -> int:
    """Have the report written when all jobs of the command are done. Returns 0. Raises UserError without records."""
    study.check_has_records(settings)
    study.report_due = True
    return 0
