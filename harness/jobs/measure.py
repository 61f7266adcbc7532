"""``python -m harness job=evaluate``, latency, kept_mass or perplexity: measures arms of a model, into records."""

from __future__ import annotations

from rich.console import Console

from harness.core.errors import UserError
from harness.core.settings import Settings
from harness.jobs.command_state import CommandState
from harness.jobs.studies import OpenStudy
from harness.measure.run import measure


def run(settings: Settings, study: OpenStudy, command: CommandState) -> int:
    """Measure what the settings ask for and the study lacks. Returns how many cells failed. Raises UserError for bad input."""
    check_can_measure(settings, study, command.console)
    done = measure(settings, study.store, command.console, command.sweep)
    study.arms.update(done.arms)
    if settings.report:
        study.add_arms(done.arms)
        study.refresh_leaderboard()
    return done.failed


def check_can_measure(settings: Settings, study: OpenStudy, console: Console) -> None:
    """Raise UserError for a study that arms can't be added to: one of kernels, or one with a corrupt record."""
    if study.store.kernels.exists():
        raise UserError(f"study={settings.study} is a study of kernels: name another one, for example study=mine")
    study.check_records(console)
