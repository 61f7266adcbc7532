"""A study that a command works on: its records, and its leaderboard and figures, written when all jobs are done."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from harness.core.errors import UserError
from harness.core.printable import printable
from harness.core.settings import Settings
from harness.study.store import RecordError, Store

REFRESH_SHARE = 50
"""A leaderboard is written again between the jobs of a sweep after this many times the seconds that it took the last time."""


@dataclass
class OpenStudy:
    """The study of a folder. `margin` is the accuracy that a method may lose in its leaderboard; `arms` are the ids of the arms
    that this command ran, which the table in the terminal shows (none: all); `report_due` says whether the report is to be
    written, `next_refresh` when the leaderboard may be written before that, in seconds of time.monotonic, and `said` what was
    said once for all jobs."""

    store: Store
    margin: float
    arms: set[str] = field(default_factory=set)
    report_due: bool = False
    next_refresh: float = 0.0
    said: set[str] = field(default_factory=set)

    def check_has_records(self, settings: Settings) -> None:
        """Raise UserError where nothing was ever measured, or where what was can't be read whole."""
        store, folder = self.store, self.store.folder
        if not any(file.exists() for file in store.files()):
            raise UserError(f"study={settings.study}: no records in {folder}; measure something with that study")
        self.check_whole()
        if (folder / "leaderboard.csv").exists() and not any(file.read() for file in store.measured()):
            raise UserError(
                f"study={settings.study}: it has a leaderboard, and {store.runs.path.parent} holds nothing to make it of: "
                "restore what was measured (a backup, git checkout), or measure it again"
            )

    def check_whole(self) -> None:
        """Raise UserError where the records can't be read whole; say what a reading of them goes without."""
        from harness.study.integrity import check_study  # numpy comes with it, which the help of a command does without

        check_study(self.store)
        self._say_left_out()

    def check_records(self, console: Console) -> None:
        """Read all records. Raises UserError for a corrupt line: that stops a command before hours of work, not after. What is
        lost is only said: the command may be the one that brings it back."""
        from harness.study.integrity import check_records, lost

        check_records(self.store)
        self._say_left_out()
        if problem := lost(self.store):
            _warn(console, f"no leaderboard can be written as yet: {problem}")

    def _say_left_out(self) -> None:
        """Say on stderr, once, what of the records the last reading went without."""
        from harness.study.integrity import left_out

        for line in left_out(self.store):
            if line not in self.said:
                print(f"warning: {printable(line)}", file=sys.stderr)
                self.said.add(line)

    def add_arms(self, arms: Iterable[str]) -> None:
        """Note that a report is due, which shows these arms."""
        self.arms.update(arms)
        self.report_due = True

    def refresh_leaderboard(self) -> None:
        """Write the leaderboard between the jobs of a sweep, as often as takes a fiftieth of the time."""
        from harness.report.leaderboard_csv import write_leaderboard

        began = time.monotonic()
        if began < self.next_refresh:
            return
        try:
            write_leaderboard(self.store, self.margin)
        except RecordError:
            self.report_due = False  # it would end in the same line
            raise
        ended = time.monotonic()
        self.next_refresh = ended + REFRESH_SHARE * (ended - began)

    def write_report(self, console: Console) -> list[Path]:
        """Write leaderboard and figures, and show the table. Returns the paths of the files."""
        from harness.report.study_report import report_study

        return report_study(self.store, console, margin=self.margin, arms=self.arms)


def _warn(console: Console, text: str) -> None:
    console.print(f"warning: {text}", style="yellow", markup=False, highlight=False, soft_wrap=True)
