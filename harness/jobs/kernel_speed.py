"""``python -m harness job=kernel_speed``: kernels timed on a model's shape without the model."""

from __future__ import annotations

from harness.core.errors import UserError
from harness.core.settings import Settings
from harness.jobs.announce import announce_cases
from harness.jobs.command_state import CommandState
from harness.jobs.studies import OpenStudy
from harness.measure.kernel_speed.study import Study
from harness.study.planned import CASES, Planned


def run(settings: Settings, study: OpenStudy, command: CommandState) -> int:
    """Time what the settings ask for and the study lacks. Returns how many cases failed. Raises UserError for bad input."""
    store = study.store
    if store.cells.exists() or store.latency.exists() or store.mass.exists():
        raise UserError(f"study={settings.study} holds other measurements: name another one, study=kernel_speed say")
    study.check_records(command.console)
    work = Study(settings, store, command.console, command.sweep)
    cases = work.grid.cases()
    missing = {*work.log.missing(cases)}
    shape = work.grid.shape.name
    plan = [Planned(CASES, shape, case.as_dict(), task=case.op, recorded=int(case not in missing)) for case in cases]
    announce_cases(command, settings, plan)
    failed = work.go()
    study.report_due = True
    return failed
