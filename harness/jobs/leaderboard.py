"""``python -m harness job=leaderboard``: the rows of all studies in one file, made again from their records."""

from __future__ import annotations

from collections import Counter

from harness.core.errors import UserError
from harness.core.settings import Settings
from harness.jobs.command_state import CommandState
from harness.jobs.every_study import every_store, out_file, read_every, why_empty
from harness.jobs.studies import OpenStudy
from harness.report.joined import KINDS, in_order, study_rows, write_joined


def run(settings: Settings, study: OpenStudy, command: CommandState) -> int:
    """Write the joined leaderboard. Returns how many studies could not be read, each of which is named in a line. Raises
    UserError for bad settings, and where no study has rows."""
    if "study" in settings.given:
        raise UserError(f"study={settings.study}: job=leaderboard joins every study of results=: leave study= out")
    stores = every_store(settings.results)  # first: where it is no folder, that is what is wrong with out= too
    out = out_file(settings.options["out"], "leaderboard.csv")
    damaged: list[str] = []
    rows = in_order(read_every(stores, lambda store: study_rows(store, settings.margin), settings, command, damaged))
    if not rows:
        raise UserError(f"results={settings.results}: {why_empty(stores, damaged)}; {out} stays as it is")
    write_joined(out, rows)
    kinds, studies = Counter(row["kind"] for row in rows), len({row["study"] for row in rows})
    counted = ", ".join(f"{kinds[kind]} {kind}" for kind in KINDS if kinds[kind])
    of = f"{studies} {'study' if studies == 1 else 'studies'}"
    command.console.print(f"{len(rows)} rows of {of}: {counted}", highlight=False, soft_wrap=True)
    command.print_written([out])
    return len(damaged)
