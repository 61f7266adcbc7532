"""What every job of a sweep is run in, whichever process runs it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from hydra.conf import HydraConf

from harness.core.conf_files import groups, setting_names
from harness.core.given import giving
from harness.jobs.arguments import check_choices, check_hydra_settings, given_names

DONE = 0
FAILED_CELLS = 1


@contextmanager
def as_composed(hydra_config: HydraConf) -> Iterator[None]:
    """Check what Hydra composed a job of, and let its settings, those of its experiment too, count as given inside. Raises
    UserError."""
    overrides, experiment = hydra_config.overrides, hydra_config.runtime.choices.get("experiment")
    check_choices(overrides.task)  # those that an experiment sweeps over too
    check_hydra_settings(overrides.hydra)
    own = setting_names("experiment", experiment) if experiment in groups().get("experiment", []) else []
    with giving({*given_names(overrides.task), *own}):
        yield
