"""``python -m harness job=densities``: the densities that arms reach, by task, before any answer is paid for."""

from __future__ import annotations

from pathlib import Path

from harness.core import checks
from harness.core.output import check_own_output
from harness.core.settings import Settings
from harness.jobs.command_state import CommandState
from harness.jobs.measure import check_can_measure
from harness.jobs.studies import OpenStudy
from harness.measure.run import measure
from harness.measure.shipped_knobs import ship


def run(settings: Settings, study: OpenStudy, command: CommandState) -> int:
    """Measure what the settings ask for and the study lacks; with `job.out`, write the knobs that the study's searches found
    into that folder. Returns how many arms failed. Raises UserError for bad input."""
    out = checks.text_or_null("job.out", settings.options["out"])
    check_own_output("job.out", out)
    check_can_measure(settings, study, command.console)
    done = measure(settings, study.store, command.console, command.sweep)
    if out is not None:
        path, count = ship(study.store.calibrations.read(), Path(out).expanduser())
        command.console.print(f"searched knobs in {path}: {count}", highlight=False, soft_wrap=True)
    return done.failed
