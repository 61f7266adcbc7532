"""The configs of a sweep's jobs. Hydra takes a tenth of a second for each, and jobs differ in values alone, most of them.

So Hydra composes one config for every choice of groups that comes up, and the values of a job are set in a copy of it, by
Hydra's own rules: what they are is parsed by Hydra, and whatever is no plain value of a setting that is there is left to it.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from harness.core.conf_files import groups

PLAIN = re.compile(r"[A-Za-z_]\w*(\.\w+)*=")
"""How an argument begins that sets a value: of no group in a package (@), added (+), taken out (~) or below a folder (/)."""


class JobComposer:
    """Composes the configs of jobs. compose: what composes one from all of its arguments, with Hydra's own settings in it."""

    def __init__(self, compose: Callable[[list[str]], DictConfig]) -> None:
        self._compose = compose
        self._bases: dict[tuple[str, ...], bytes] = {}
        self._checked: set[tuple[tuple[str, ...], str]] = set()

    def __call__(self, arguments: Sequence[str]) -> DictConfig:
        """Return the config of the job with these arguments. Raises as Hydra does where it can't be composed."""
        values = [argument for argument in arguments if is_value(argument)]
        try:
            config = self._base(tuple(argument for argument in arguments if not is_value(argument)))
            for argument in values:
                key, value = parsed(argument)
                OmegaConf.update(config, key, value, merge=True)
        except (HydraException, OmegaConfBaseException, ValueError):
            return self._compose(list(arguments))  # which says what is wrong
        with open_dict(config.hydra):
            config.hydra.overrides.task = [a for a in arguments if not a.lstrip("+~").startswith("hydra")]
        return config

    def check(self, arguments: Sequence[str]) -> None:
        """Compose a job if it has a value that no job with the same choices of groups had so far. Raises as composing does."""
        choices = tuple(argument for argument in arguments if not is_value(argument))
        pairs = {(choices, argument) for argument in arguments}
        if not pairs <= self._checked:
            self(arguments)
            self._checked |= pairs

    def _base(self, choices: tuple[str, ...]) -> DictConfig:
        """Return a config of its own with some choices of groups, and whatever else is no plain value."""
        if choices not in self._bases:
            self._bases[choices] = pickle.dumps(self._compose(list(choices)))  # OmegaConf takes thrice as long for a copy
        config: DictConfig = pickle.loads(self._bases[choices])
        return config


def is_value(argument: str) -> bool:
    """Return whether an argument of a job sets a plain value, not a choice of a group nor a setting of Hydra's."""
    name = argument.partition("=")[0]
    return PLAIN.match(argument) is not None and name not in groups() and name.partition(".")[0] != "hydra"


@lru_cache(maxsize=4096)
def _parse(argument: str) -> tuple[str, bytes]:
    override = OverridesParser.create().parse_override(argument)
    if override.is_sweep_override():
        raise ValueError(f"{argument}: several values for one job")
    return override.key_or_group, pickle.dumps(override.value())


def parsed(argument: str) -> tuple[str, Any]:
    """Return the name of the setting in an argument, and its value as Hydra reads it. Raises HydraException where it can't,
    ValueError for several values."""
    name, value = _parse(argument)
    return name, pickle.loads(value)
