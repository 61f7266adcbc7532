"""The settings of the group `model`, checked: a model with weights (`path`), or one by shape, whose weights are drawn."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

from harness.core import checks
from harness.core.chat_options import check_date
from harness.core.conf_files import defaults, groups
from harness.core.errors import UserError
from harness.core.model_name import BY_SHAPE, name_of_path

NAMED = 2
"""Sizes at most that a name says are not those of the file it is named after; of more it says their number, and a hash."""
ELSEWHERE = {
    "path": "model.shape is given too, and its weights are drawn: leave one of them out (model=shape/custom has no path)",
    "gates": "gates of a model by shape are drawn: leave it out",
    "released_gates.prefill": "gates of a model by shape are drawn: leave it out",
    "released_gates.decode": "gates of a model by shape are drawn: leave it out",
}
"""Settings that say where something trained lies, which a model by shape has not, and what to say of them."""


def model_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of the model, checked; `shape` is None for a model with weights. Raises UserError."""
    ids = settings["released_gates"]
    if not isinstance(ids, dict):
        raise UserError(f"model.released_gates={ids}: it has settings below it: prefill, decode")
    chat = checks.true_or_false("model.chat_template", settings["chat_template"])
    thinking = settings["enable_thinking"]
    if thinking is not None:
        thinking = checks.true_or_false("model.enable_thinking", thinking)
        if not chat:
            raise UserError(
                "model.enable_thinking is for a chat template, and model.chat_template=false: leave one of them out"
            )
    name, shape = checks.text("model.name", settings["name"]), settings["shape"]
    path = checks.text("model.path", settings["path"]) if shape is None else None
    if shape is not None:
        _check_drawn(settings)
        _check_shape("model.shape", shape)
    elif path is not None:
        check_path(path)
    if shape is None and name.startswith(BY_SHAPE):
        raise UserError(f"model.name={name}: {BY_SHAPE}… is what rows call models of random weights: take another name")
    return {
        "name": name_of_path(name) if shape is None else _name_by_shape(name, shape),
        "path": path,
        "shape": shape,
        "max_length": checks.whole_number_or_null("model.max_length", settings["max_length"], 1),
        "chat_template": chat,
        "date": check_date("model.date", settings["date"]),
        "enable_thinking": thinking,
        "gates": checks.text_or_null("model.gates", settings["gates"]),
        "released_gates": {phase: checks.text_or_null(f"model.released_gates.{phase}", i) for phase, i in ids.items()},
    }


def check_path(path: str) -> None:
    """Raise UserError for a model by shape that is asked for by its path, where one with weights belongs."""
    if path.startswith(BY_SHAPE) and path in groups()["model"]:
        raise UserError(
            f"model.path={path}: a model by shape is a choice and no path, and is for times alone: job=latency model={path}"
        )


def _check_drawn(settings: Mapping[str, Any]) -> None:
    """Raise UserError for what a model with a shape is given, and has no use for: it reads no file and no text."""
    given = _flat(settings)
    for name, advice in ELSEWHERE.items():
        if given.get(name) is not None:
            raise UserError(f"model.{name}={given[name]}: {advice}")
    if settings["chat_template"]:
        raise UserError("model.chat_template=true: a model by shape has no tokenizer, its prompts are drawn: leave it out")


def _check_shape(name: str, value: Any) -> None:
    """Raise UserError for a shape, or a part of it, that no config.json could hold."""
    if not isinstance(value, dict):
        raise UserError(f"{name}={value}: it has settings below it, those of a config.json: model_type, hidden_size, …")
    for key, part in value.items():
        if not isinstance(key, str):
            raise UserError(f"{name}: {key} is no name of a setting: it must be a text")
        for entry in part if isinstance(part, list) else [part]:
            if isinstance(entry, dict):
                _check_shape(f"{name}.{key}", entry)
            elif isinstance(entry, float) and not math.isfinite(entry):
                raise UserError(f"{name}.{key}={part}: must be a finite number")
            elif entry is not None and not isinstance(entry, str | bool | int | float):
                raise UserError(f"{name}.{key}={part}: must be a number, a text, true, false, null, or a list of them")


def _name_by_shape(name: str, shape: Mapping[str, Any]) -> str:
    """Return what rows call a model by shape: it always says that it is one, and what differs from the file of that name."""
    name = name if name.startswith(BY_SHAPE) else f"{BY_SHAPE}{name}"
    own = defaults("model", name)["shape"] if name in groups()["model"] else None
    if not isinstance(own, Mapping):
        return name
    standing, asked = _flat(own), _flat(shape)
    changed = [f"{key}={asked.get(key)}" for key in {**standing, **asked} if standing.get(key) != asked.get(key)]
    if len(changed) > NAMED:
        content = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
        return f"{name} ({len(changed)} sizes changed, {content[:8]})"
    return f"{name} ({', '.join(changed)})" if changed else name


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return settings and those below them by dotted name."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
