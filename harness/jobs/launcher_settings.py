"""What `hydra.launcher.NAME=` says, checked (conf/hydra/launcher)."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from harness.core.conf_files import defaults
from harness.core.errors import UserError, did_you_mean
from harness.jobs.engines import ENGINES

ROOT = Path(__file__).resolve().parents[2]
"""The folder that `harness` is imported from."""
PYTHONPATH = "PYTHONPATH"
DEVICES = "devices"
VISIBLE = "CUDA_VISIBLE_DEVICES"
"""What says which GPUs a process sees."""
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class LauncherSettings:
    """The settings of a launcher. devices: what `devices=` says, None where a launcher has `workers`, a count; gpus, cpus: of
    each worker; environment: of the workers, with where to import from what this process does; parameters: what the engine
    takes besides."""

    engine: str
    devices: str | None
    workers: int
    gpus: int
    cpus: int
    folder: str
    environment: dict[str, str]
    parameters: dict[str, Any]


def launcher_settings(engine: str, raw: Mapping[str, Any]) -> LauncherSettings:
    """Check the settings of a launcher. Raises UserError naming the setting, its value and what it may be."""
    if engine not in ENGINES:
        raise UserError(f"hydra.launcher.engine={engine}: must be one of {', '.join(ENGINES)}")
    file = defaults("hydra/launcher", engine)
    for name in raw:
        if name not in file:
            names = [name for name in file if not name.startswith("_")]
            raise UserError(f"hydra.launcher.{name}: hydra/launcher={engine} has no such setting{did_you_mean(name, names)}")
    settings = file | {name: _plain(value) for name, value in raw.items()}
    folder, parameters = settings["folder"], settings.get("parameters", {})
    if not isinstance(folder, str) or not folder:
        raise UserError(f"hydra.launcher.folder={_shown(folder)}: must be a folder's path")
    if not isinstance(parameters, Mapping):
        raise UserError(f"hydra.launcher.parameters={_shown(parameters)}: must be settings, parameters.NAME=value")
    gpus = _whole("gpus", settings.get("gpus", 0), 0)
    return LauncherSettings(
        engine=engine,
        devices=str(settings[DEVICES]) if DEVICES in settings else None,
        workers=_whole("workers", settings.get("workers", 1), 1),
        gpus=gpus,
        cpus=_whole("cpus", settings.get("cpus", 1), 1),
        folder=folder,
        environment=_environment(settings["env"], gives_devices=DEVICES in settings or gpus > 0),
        parameters=dict(parameters),
    )


def _environment(variables: Any, *, gives_devices: bool) -> dict[str, str]:
    if not isinstance(variables, Mapping):
        raise UserError(f"hydra.launcher.env={_shown(variables)}: must be variables, +hydra.launcher.env.NAME=value")
    texts: dict[str, str] = {}
    for name, value in variables.items():
        if not VARIABLE.fullmatch(str(name)) or not isinstance(value, str | int | float) or "\0" in str(value):
            raise UserError(f"hydra.launcher.env.{name}={_shown(value)}: must be a variable's name and a text or a number")
        texts[str(name)] = str(value).lower() if isinstance(value, bool) else str(value)
    if VISIBLE in texts and gives_devices:
        raise UserError(f"hydra.launcher.env.{VISIBLE}: this launcher says which GPUs a worker sees; leave it out")
    paths = [str(ROOT), *texts.get(PYTHONPATH, os.environ.get(PYTHONPATH, "")).split(os.pathsep)]
    return texts | {PYTHONPATH: os.pathsep.join(dict.fromkeys(path for path in paths if path))}


def _whole(name: str, value: Any, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UserError(f"hydra.launcher.{name}={_shown(value)}: must be a whole number, at least {least}")
    return value


def _plain(value: Any) -> Any:
    """Return a value of Hydra's as Python's own: libraries ask whether theirs is a list."""
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)
