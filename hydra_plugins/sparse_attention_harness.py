"""What Hydra finds the harness's launcher by: it takes launchers from the namespace `hydra_plugins` alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher


class WorkerLauncher(Launcher):
    """Hydra's view of the workers of a sweep. engine: what starts them; place: the other settings of conf/hydra/launcher."""

    def __init__(self, engine: str, **place: Any) -> None:
        self.engine, self.place = engine, place

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        """Take what Hydra hands every launcher. None of it is used: workers compose the settings of their jobs themselves."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run all jobs of the sweep on workers."""
        from harness.jobs.launcher import launch_jobs  # Hydra imports all of its plugins, whoever uses it

        launch_jobs(self.engine, self.place, job_overrides)
        return []
