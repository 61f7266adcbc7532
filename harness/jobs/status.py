"""``python -m harness job=status``: how far a study is, and who works on it; from records, without torch."""

from __future__ import annotations

from harness.core import checks
from harness.core.errors import UserError
from harness.core.settings import Settings
from harness.jobs.command_state import CommandState
from harness.jobs.plan import beside
from harness.jobs.studies import OpenStudy
from harness.report.status import status_of
from harness.report.status_text import headline, print_status, summary_line
from harness.study.running import states_in
from harness.study.store import Store

MOST_LINES = 100
"""Lines of a failure at most: more are in the records."""


def run(settings: Settings, study: OpenStudy, command: CommandState) -> int:
    """Print how far the study is; without study=, one line for each that a process works on, or died on. Returns 0. Raises
    UserError for a study that is not there."""
    lines = checks.whole_number("job.lines", settings.options["lines"], 0, MOST_LINES)
    if "study" not in settings.given:
        _list(settings, command)
        return 0
    if str(settings.folder) in command.said:  # an experiment sweeps over what does not matter here
        return 0
    command.said.add(str(settings.folder))
    store = study.store
    if not states_in(store.folder) and not any(file.exists() for file in store.files()):
        raise UserError(
            f"study={settings.study}: nothing runs on it, and no records in {store.folder}; job=status lists others"
        )
    print_status(status_of(store, beside(store.folder)), command.console, lines)
    return 0


def _list(settings: Settings, command: CommandState) -> None:
    """Print a line for each study of the folder that a process works on, or died on."""
    folders = sorted({path.parent.parent for path in settings.results.glob("*/running/*.json")})
    shown = [folder for folder in folders if states_in(folder)]
    for folder in shown:
        try:
            status = status_of(Store(folder), beside(folder))
            line = f"{headline(status)}; {summary_line(status)}"
        except UserError as error:
            line = f"can't be read: {error}"
        command.console.print(f"{folder.name}: {line}", highlight=False, soft_wrap=True)
    if not shown:
        command.console.print(f"nothing runs on a study of {settings.results}", highlight=False)
