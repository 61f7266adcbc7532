"""The jobs of one command, one or a sweep of them, and the reports of their studies, once, when all are done."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console

from harness.core.devices import torch_device
from harness.core.settings import Settings, read_settings
from harness.jobs.studies import OpenStudy
from harness.jobs.table import Does, check_question_fits, find_job
from harness.study.store import Store
from harness.tasks.names import expand


class CommandRun:
    """Runs the jobs of a command, and keeps the studies that they work on."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()
        self.studies: dict[Path, OpenStudy] = {}

    def run(self, cfg: DictConfig) -> int:
        """Run the job of one composed config. Returns how many cells failed. Raises UserError for bad input."""
        job = find_job(str(cfg.job.name))
        settings = read_settings(cfg)
        check_question_fits(job, settings.question)
        settings = replace(settings, tasks=tuple(expand(settings.tasks)))
        if job.does is not Does.READS:
            torch_device(settings.device_choice)  # a device that isn't there is an error before any work
        function = job.load()
        if job.does is Does.TRAINS:
            function(cfg)
            return 0
        failed: int = function(settings, self._open(settings), self.console)
        return failed

    def _open(self, settings: Settings) -> OpenStudy:
        """Return the study of the settings; the jobs of a sweep share it, with the margin of the latest."""
        study = self.studies.setdefault(settings.folder, OpenStudy(Store(settings.folder), settings.margin))
        study.margin = settings.margin
        return study

    def finish(self) -> None:
        """Write the reports that are due."""
        for study in self.studies.values():
            if study.report_due:
                study.write_report(self.console)
