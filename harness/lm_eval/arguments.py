"""From lm-eval's --model_args to the settings of this harness, by the same config files and the same checks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.arms.build import baseline_name
from harness.core.compose import compose_settings
from harness.core.errors import UserError
from harness.core.settings import Settings

CONFIG = ("sparsity", "knob_value", "as_released", "seed", "block_size", "dtype", "kernel", "dense_kernel", "decode_kernel")
"""Settings of conf/config.yaml that --model_args may give."""
OF_THE_MODEL = ("model.max_length",)
"""Settings of conf/model that --model_args may give; pretrained= and gates= give the others."""
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
BUILT_FROM = ("pretrained", "date", "method", "decode", "gates", "overlong")
"""Arguments that choose a model, the date of its chat template, a method and its files, and what happens to a prompt that does
not fit."""
OVERLONG = ("error", "left")


def parse(arguments: Mapping[str, Any]) -> tuple[Settings, dict[str, Any]]:
    """Return the settings, and the arguments of HFLM; device is lm-eval's --device.

    Raises UserError for a name that is neither, and whatever `read_settings` refuses.
    """
    if not isinstance(arguments.get("pretrained"), str):
        raise UserError("--model_args: pretrained= has no value: give a folder, a hub id, or bundled")
    for name in arguments:
        if name not in (*CONFIG, *OF_THE_MODEL, *HFLM, *BUILT_FROM, "device") and not name.startswith(("method.", "decode.")):
            known = ", ".join((*BUILT_FROM, *CONFIG, *OF_THE_MODEL))
            raise UserError(
                f"--model_args: {name}= is not known or can't be honoured under a sparse method; "
                f"choose from: {known}, method.KNOB, decode.KNOB, and of HFLM's: {', '.join(HFLM)}"
            )
    return _settings(arguments), {name: arguments[name] for name in HFLM if name in arguments}


def _settings(arguments: Mapping[str, Any]) -> Settings:
    path = arguments["pretrained"]
    groups = {"model": "bundled" if path == "bundled" else "hf", "method": arguments.get("method", baseline_name())}
    if "decode" in arguments:
        groups["decode"] = arguments["decode"]
    values = {"model.path": path, "model.gates": arguments.get("gates")}
    for name in ("date", "enable_thinking"):
        if name in arguments:
            values[f"model.{name}"] = arguments[name]
    for name, value in arguments.items():
        if name in (*CONFIG, *OF_THE_MODEL, "device") or name.startswith(("method.", "decode.")):
            values[name] = value
    try:
        return compose_settings(groups, values)
    except UserError as error:
        raise UserError(f"--model_args: {error}") from error


def overlong(value: Any) -> str:
    """Return what happens to a prompt that does not fit: error, or left (cut as HFLM does). Raises UserError for others."""
    if value not in OVERLONG:
        raise UserError(f"--model_args: overlong={value}: must be one of {', '.join(OVERLONG)}")
    return str(value)


def batch_size(value: Any) -> int:
    """Return how many sequences run at once; lm-eval hands over a word. Raises UserError unless it is a positive number."""
    try:
        number = int(value)
    except (TypeError, ValueError):
        number = 0
    if number < 1:
        raise UserError(f"--batch_size {value}: give a number of at least 1; auto would measure trial runs as if they counted")
    return number
