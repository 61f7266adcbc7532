"""The jobs of the command, and what happens when all of a sweep's are done: leaderboard, figures, table."""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console

from harness.core.errors import UserError
from harness.core.settings import Settings, read_settings
from harness.measure.sweep import SweepCache
from harness.report.leaderboard_csv import write_leaderboard
from harness.report.study_report import report_study
from harness.study.store import Store


class Jobs:
    """Runs the jobs of one command, one or many (`-m`), and reports on every study they touched, once, at the end."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()
        self.touched: dict[Path, set[str]] = {}
        self.stores: dict[Path, Store] = {}
        self.margins: dict[Path, float] = {}
        self.next_write = 0.0
        self.sweep = SweepCache()
        self.measuring: dict[str, Callable[[Settings], int]] = {
            "evaluate": self._measure,
            "latency": self._measure,
            "kept_mass": self._measure,
            "perplexity": self._measure,
            "report": self._report,
            "archive": self._archive,
            "kernel_speed": self._kernel_speed,
            "power": self._power,
            "maps": self._maps,
            "compare": self._compare,
        }
        self.training = {
            "pretrain": "harness.training.bundled_model.pretrain",
            "distill": "harness.training.gates.distill_command",
            "gate_recall": "harness.training.gates.recall_command",
            "search_heads": "harness.measure.head_search",
            "export": "harness.lm_eval.export",
            "convert_gates": "harness.training.gates.convert",
        }

    def run(self, cfg: DictConfig) -> int:
        """Run the job of one composed config. Returns 1 where cells failed, else 0; UserError for bad input."""
        name = str(cfg.job.name)
        if name in self.training:
            import_module(self.training[name]).main(cfg)
            return 0
        if name not in self.measuring:
            known = ", ".join(sorted([*self.measuring, *self.training]))
            raise UserError(f"job.name={name} is not known; choose one of: {known}")
        settings = read_settings(cfg)
        self.margins[settings.folder] = settings.margin
        return self.measuring[name](settings)

    def _measure(self, settings: Settings) -> int:
        from harness.measure.run import measure  # transformers takes seconds to import, and a report needs none of it

        store = self.stores.setdefault(settings.folder, Store(settings.folder))
        if store.kernels.exists():
            raise UserError(f"study={settings.study} is a study of kernels: name another one, for example study=mine")
        for file in store.files():
            file.read()  # a corrupt record stops the command before hours of work, not after
        done = measure(settings, store, self.console, self.sweep)
        if settings.report:
            self.touched.setdefault(settings.folder, set()).update(done.arms)
            self._keep_fresh(store)
        return 1 if done.failed else 0

    def _kernel_speed(self, settings: Settings) -> int:
        from harness.measure.kernel_speed.study import Study

        store = self.stores.setdefault(settings.folder, Store(settings.folder))
        if store.cells.exists() or store.latency.exists() or store.mass.exists():
            raise UserError(f"study={settings.study} holds other measurements: name another one, study=kernel_speed say")
        for file in store.files():
            file.read()
        failed = Study(settings, store, self.console, self.sweep).go()
        self.touched.setdefault(settings.folder, set())
        return 1 if failed else 0

    def _keep_fresh(self, store: Store) -> None:
        """Rebuild the leaderboard between the jobs of a sweep, as often as takes a twentieth of the time."""
        began = time.monotonic()
        if began < self.next_write:
            return
        write_leaderboard(store, self.margins[store.folder])
        ended = time.monotonic()
        self.next_write = ended + 20 * (ended - began)

    def _there(self, settings: Settings) -> None:
        if not any(file.exists() for file in Store(settings.folder).files()):
            raise UserError(f"study={settings.study}: no records in {settings.folder}; measure something with that study")

    def _report(self, settings: Settings) -> int:
        self._there(settings)
        self.touched.setdefault(settings.folder, set())
        return 0

    def _power(self, settings: Settings) -> int:
        from harness.jobs.power import power

        for path in power(settings, Store(settings.folder), self.console):
            self.console.print(f"wrote {path}", highlight=False, soft_wrap=True)
        return 0

    def _compare(self, settings: Settings) -> int:
        from harness.jobs.compare import compare

        self._there(settings)
        for path in compare(settings, Store(settings.folder), self.console):
            self.console.print(f"wrote {path}", highlight=False, soft_wrap=True)
        return 0

    def _maps(self, settings: Settings) -> int:
        from harness.jobs.maps import draw_maps

        for path in draw_maps(settings, Store(settings.folder), self.console):
            self.console.print(f"wrote {path}", highlight=False, soft_wrap=True)
        return 0

    def _archive(self, settings: Settings) -> int:
        self._report(settings)
        store = self.stores.setdefault(settings.folder, Store(settings.folder))
        for file in (store.samples, store.cells, store.kernels):  # the others stay small, and readable as they are
            if lines := file.archive():
                self.console.print(f"{lines:,} records in {file.archived}", highlight=False, soft_wrap=True)
        return 0

    def finish(self) -> int:
        """Write leaderboard and figures of the studies touched, print the table and where everything lies."""
        for folder, arms in self.touched.items():
            store = self.stores.get(folder) or Store(folder)
            written = report_study(store, self.console, margin=self.margins[folder], arms=arms)
            for path in (*written, folder / "records"):
                self.console.print(f"wrote {path}", highlight=False, soft_wrap=True)
        return 0
