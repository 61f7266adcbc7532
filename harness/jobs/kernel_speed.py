"""``python -m harness job=kernel_speed``: kernels timed on a model's shape without the model."""

from __future__ import annotations

from harness.core.errors import UserError
from harness.core.settings import Settings
from harness.jobs.command_state import CommandState
from harness.jobs.studies import OpenStudy
from harness.measure.kernel_speed.study import Study


def run(settings: Settings, study: OpenStudy, command: CommandState) -> int:
    """Time what the settings ask for and the study lacks. Returns how many cases failed. Raises UserError for bad input."""
    store = study.store
    if store.cells.exists() or store.latency.exists() or store.mass.exists():
        raise UserError(f"study={settings.study} holds other measurements: name another one, study=kernel_speed say")
    study.check_records(command.console)
    failed = Study(settings, store, command.console, command.sweep).go()
    study.report_due = True
    return failed
