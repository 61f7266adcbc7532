"""What Hydra finds the harness's launcher and sweeper by: it takes them from the namespace `hydra_plugins` alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra._internal.core_plugins import basic_launcher, basic_sweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, env_override
from hydra.plugins.launcher import Launcher
from omegaconf import open_dict


class WorkerLauncher(Launcher):
    """Hydra's view of the workers of a sweep. engine: what starts them; place: the other settings of conf/hydra/launcher."""

    def __init__(self, engine: str, **place: Any) -> None:
        self.engine, self.place = engine, place
        self.context: Any = None
        self.config: Any = None

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        """Take what Hydra hands every launcher. It tells what the jobs are; workers compose their settings themselves."""
        self.context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run all jobs of the sweep on workers."""
        from harness.jobs.announce_workers import announced
        from harness.jobs.launcher import launch_jobs

        loader, config = self.context.config_loader, self.config
        said = announced(lambda arguments: loader.load_sweep_config(config, arguments), job_overrides, self.place)
        launch_jobs(self.engine, self.place, job_overrides, said)
        return []


class JobSweeper(basic_sweeper.BasicSweeper):
    """Hydra's own sweeper, with two differences that a sweep of thousands of jobs notices: a job is composed in
    milliseconds, and jobs of this process leave no copies of their configs behind."""

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        """Take what Hydra hands every sweeper, and see to what composes and runs the jobs."""
        from harness.jobs.composing import JobComposer

        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        loader = hydra_context.config_loader
        self._composer = JobComposer(lambda arguments: loader.load_sweep_config(config, arguments))
        job = config.hydra
        usual = not (job.job.chdir or job.output_subdir or job.callbacks)  # else Hydra's own has more to do
        if usual and isinstance(self.launcher, basic_launcher.BasicLauncher):
            self.launcher = _InProcess(self._composer, task_function)

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """See that all jobs can be composed before the first one runs. Raises as Hydra does for what can't be."""
        for arguments in batch:
            self._composer.check(arguments)


class _InProcess(Launcher):
    """Runs the jobs of a sweep one after the other, as Hydra's own launcher does."""

    def __init__(self, composer: Any, task_function: Any) -> None:
        self.composer, self.task_function = composer, task_function

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        """Take nothing: it is made with all that it needs."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run all jobs of the sweep."""
        from harness.jobs.announce import note_jobs

        note_jobs(self.composer, job_overrides)
        for number, arguments in enumerate(job_overrides, initial_job_idx):
            config = self.composer(arguments)
            with open_dict(config.hydra):
                config.hydra.job.id = config.hydra.job.num = number
            HydraConfig.instance().set_config(config)
            variables = dict(config.hydra.job.env_set)
            with open_dict(config):
                del config["hydra"]
            with env_override(variables):
                self.task_function(config)
        return []
