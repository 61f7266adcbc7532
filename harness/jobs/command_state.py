"""What the jobs of one command share: the console, and the studies that they work on."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from harness.core.settings import Settings
from harness.core.terminal import Terminal
from harness.jobs.studies import OpenStudy
from harness.measure.sweep import SweepCache
from harness.study.store import Store


@dataclass
class CommandState:
    """The state of a command that runs one job or a sweep of them. `given` are the names of the settings on the command line,
    `studies` those opened so far, by their folders, `sweep` holds the model and the tokens that the jobs share, and `said` what
    was said once for all jobs.

    jobs: the settings of all jobs of a sweep, as far as they could be composed before it; count: how many there are (0: one
    alone); number: which one is at work. announced: whether it was said what all of them are.
    """

    given: tuple[str, ...] = ()
    console: Console = field(default_factory=Terminal)
    studies: dict[Path, OpenStudy] = field(default_factory=dict)
    sweep: SweepCache = field(default_factory=SweepCache)
    said: set[str] = field(default_factory=set)
    jobs: list[Settings] = field(default_factory=list)
    count: int = 0
    number: int = 0
    announced: bool = False

    def say_once(self, line: str) -> None:
        """Say on stderr what is no error, once for all jobs of a sweep."""
        if line not in self.said:
            print(line, file=sys.stderr)
            self.said.add(line)

    def open_study(self, settings: Settings) -> OpenStudy:
        """Return the study of the settings; the jobs of a sweep share it, with the margin of the latest."""
        return self.study_at(settings.folder, settings.margin)

    def study_at(self, folder: Path, margin: float) -> OpenStudy:
        """Return the study of a folder, with this margin from here on."""
        study = self.studies.setdefault(folder, OpenStudy(Store(folder), margin))
        study.margin = margin
        return study

    def print_written(self, paths: Iterable[Path]) -> None:
        """Say which files or folders were written, one a line."""
        for path in paths:
            self.console.print(f"wrote {path}", highlight=False, soft_wrap=True)

    def write_reports(self) -> None:
        """Write the leaderboards and figures that are due, show their tables, and say where everything lies."""
        for folder, study in self.studies.items():
            if study.report_due:
                self.print_written([*study.write_report(self.console), folder / "records"])
