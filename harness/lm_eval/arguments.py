"""From lm-eval's --model_args to the settings of this harness, by the same config files and the same checks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness.arms.build import baseline_name
from harness.core.conf_files import conf_dir
from harness.core.errors import UserError
from harness.core.settings import Settings, explain, read_settings

OURS = ("sparsity", "seed", "block_size", "dtype", "kernel", "dense_kernel", "decode_kernel")
"""Settings of conf/config.yaml that --model_args may give."""
HFLM = (
    "max_length",
    "add_bos_token",
    "prefix_token_id",
    "enable_thinking",
    "chat_template_args",
    "logits_cache",
    "softmax_dtype",
)
"""Arguments handed to lm-eval's own HFLM as they are."""
OWN = ("pretrained", "method", "decode", "gates", "overlong")
OVERLONG = ("error", "left")


def parse(arguments: Mapping[str, Any]) -> tuple[Settings, dict[str, Any]]:
    """The settings, and what goes to HFLM; device is lm-eval's --device.

    Raises UserError for a name that is neither, and whatever `settings` refuses.
    """
    given = dict(arguments)
    if not isinstance(given.get("pretrained"), str):
        raise UserError("--model_args: pretrained= has no value: give a folder, a hub id, or bundled")
    for name in given:
        if name not in (*OURS, *HFLM, *OWN, "device") and not name.startswith(("method.", "decode.")):
            raise UserError(
                f"--model_args: {name}= is not known or can't be honoured under a sparse method; "
                f"choose from: {', '.join((*OWN, *OURS))}, method.KNOB, decode.KNOB, and of HFLM's: {', '.join(HFLM)}"
            )
    return _settings(given), {name: given[name] for name in HFLM if name in given}


def _settings(given: Mapping[str, Any]) -> Settings:
    path = given["pretrained"]
    groups = {"model": "bundled" if path == "bundled" else "hf", "method": given.get("method", baseline_name())}
    if "decode" in given:
        groups["decode"] = given["decode"]
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
            cfg = compose("config", [f"{group}={choice}" for group, choice in groups.items()])
        if path != "bundled":
            cfg.model.path = path
        cfg.model.gates = given.get("gates")
        for name, value in given.items():
            if name in (*OURS, "device") or name.startswith(("method.", "decode.")):
                OmegaConf.update(cfg, name, value)
        return read_settings(cfg)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(f"--model_args: {explain(error)}") from error


def overlong(value: Any) -> str:
    """What happens to a prompt that does not fit: error, or cut from the left as HFLM does."""
    if value not in OVERLONG:
        raise UserError(f"--model_args: overlong={value}: must be one of {', '.join(OVERLONG)}")
    return str(value)


def batch_size(value: Any) -> int:
    """Sequences at once; lm-eval hands over a word."""
    try:
        number = int(value)
    except (TypeError, ValueError):
        number = 0
    if number < 1:
        raise UserError(f"--batch_size {value}: give a number of at least 1; auto would measure trial runs as if they counted")
    return number
