"""``python -m harness job=archive``: the records of a finished study compressed; every command reads them as before."""

from __future__ import annotations

from harness.core.settings import Settings
from harness.jobs.command_state import CommandState
from harness.jobs.studies import OpenStudy


def run(settings: Settings, study: OpenStudy, command: CommandState) -> int:
    """Compress the records, and have the report written. Returns 0. Raises UserError where the study has none."""
    study.check_has_records(settings)
    study.report_due = True
    store = study.store
    # the others stay small, and readable as they are
    for file in (store.samples, store.cells, store.kernels, store.gate_steps, store.finetune_steps):
        if lines := file.archive():
            command.console.print(f"{lines:,} records in {file.archived}", highlight=False, soft_wrap=True)
    return 0
