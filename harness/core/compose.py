"""Settings from Python, by the files of conf/ and the same checks as the command line's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness.core import checks
from harness.core.conf_files import conf_dir
from harness.core.errors import UserError
from harness.core.given import giving
from harness.core.hydra_text import explain, unknown_setting
from harness.core.settings import Settings, read_settings
from harness.core.task_settings import in_files


def compose_settings(groups: Mapping[str, str], values: Mapping[str, Any]) -> Settings:
    """Return the settings of `python -m harness` with these choices of groups, then with these values by dotted name.

    Raises UserError, one line, for a choice or a name that is not known and for a value out of range.
    """
    choices = [f"{group}={checks.text(group, choice)}" for group, choice in groups.items()]
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
            cfg = compose("config", choices)
        for name, value in ((in_files(name), value) for name, value in values.items()):
            parent, _, key = name.rpartition(".")
            section = OmegaConf.select(cfg, parent) if parent else cfg
            if not isinstance(section, DictConfig) or key not in section.keys():  # noqa: SIM118  # `in` leaves out what is missing
                raise UserError(unknown_setting(name))  # OmegaConf's own error leaves the group out
            OmegaConf.update(cfg, name, value)
        with giving(values):
            return read_settings(cfg)
    except UserError:
        raise
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error)) from error
    except ValueError as error:  # Hydra's own for a number in place of a name
        raise UserError(f"{', '.join(choices)}: not known") from error
