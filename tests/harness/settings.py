"""Settings for tests that call what a job calls: composed once, then changed with dataclasses.replace, which costs nothing."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from harness.core.conf_files import MAIN, NO_SETTINGS, defaults, groups
from harness.core.settings import Settings, read_settings

CONF = Path(__file__).resolve().parents[2] / "conf"


@lru_cache
def composed(*overrides: str) -> Settings:
    """The settings of a command with these arguments, those of groups and single settings; not `task=`."""
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return read_settings(compose("config", list(overrides)))


def merged(*overrides: str) -> Settings:
    """The settings of the same arguments, the files merged without Hydra: a tenth of the time, for many commands."""
    given = OmegaConf.from_dotlist([override for override in overrides if override.partition("=")[0] not in groups()])
    chosen = {"model": "bundled", "method": "seer", "decode": "dense", "job": "evaluate"}
    chosen |= {name: value for name, _, value in (override.partition("=") for override in overrides) if name in chosen}
    main = {name: value for name, value in defaults("", MAIN).items() if name not in NO_SETTINGS}
    files = {group: dict(defaults(group, choice)) for group, choice in chosen.items()}
    return read_settings(OmegaConf.merge(main, files, given))


def with_options(settings: Settings, **options: Any) -> Settings:
    """The settings with other options of the job."""
    return replace(settings, options=settings.options | options)


TINY_SIZES = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
"""Of a toy model by shape."""


def tiny_shape(*arguments: str) -> list[str]:
    """The arguments that choose a model by shape with `TINY_SIZES`."""
    sizes = (f"model.shape.{name}={value}" for name, value in TINY_SIZES.items())
    return ["model=shape/llama3_8b", *sizes, *arguments]


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
