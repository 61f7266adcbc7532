"""Settings for tests that call what a job calls: composed once, then changed with dataclasses.replace, which costs nothing."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir

from harness.core.settings import Settings, read_settings

CONF = Path(__file__).resolve().parents[2] / "conf"


@lru_cache
def composed(*overrides: str) -> Settings:
    """The settings of a command with these arguments, those of groups and single settings; not `task=`."""
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return read_settings(compose("config", list(overrides)))


def with_options(settings: Settings, **options: Any) -> Settings:
    """The settings with other options of the job."""
    return replace(settings, options=settings.options | options)


def toy_arguments(folder: Path) -> list[str]:
    """The arguments of a short run on the toy model in a folder."""
    return [
        "model=hf",
        f"model.path={folder}",
        "model.name=toy",
        "model.chat_template=false",
        "device=cpu",
        "length=1024",
        "samples=2",
        "task=niah_single_1",
        "method=block_topk",
        "sparsity=0.5",
        "latency=false",
        "batch_tokens=1",
        "study=toy",
    ]
