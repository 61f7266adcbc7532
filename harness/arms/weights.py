"""Trained weights of a method for a model: the folder where they lie, loading them, and the command that trains them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from harness.arms import gate_files
from harness.core.errors import UserError, WeightsError
from harness.core.settings import Settings
from harness.models.loading import LoadedModel, model_shape
from harness.models.shape import RANDOM
from harness.study.provenance import file_hash, tensors_hash
from methods.decode.parts.base import DecodeMethod
from methods.gates.weights import draw_gates, training_name
from methods.parts.base import Method


@dataclass(frozen=True)
class FileIdentity:
    """What a file gave a method, for the method's identity.

    content: the hash of what was read, however the file was written; of what was drawn instead, `RANDOM` and that hash.
    former: the SHA-256 of the file's bytes, by which records of before know it. notices: a line for each thing that had to be
    assumed, or was drawn.
    """

    content: str
    former: str
    notices: tuple[str, ...] = ()


OWN_GATES = "gates"
"""Folder (below the working folder) for trained weights of a model whose own folder is not ours to write into."""


def weights_folder(model: Mapping[str, Any], loaded: LoadedModel) -> Path:
    """Return the folder for what was trained, or searched, for a model. model: the settings of its group, as `Settings.model`.

    That is `model.gates` if given; the model's folder if the user named one (or it is the bundled model); `gates/ID` for a
    model from the hub, whose cache isn't ours: by its id, not by what a yaml calls it.
    """
    if model.get("gates"):
        return Path(model["gates"]).expanduser()
    path = str(model["path"] or model["name"])
    if loaded.path is not None and (path == "bundled" or Path(path).expanduser().is_dir()):
        return loaded.path
    return Path(OWN_GATES) / re.sub(r"[^\w.-]+", "-", path)


@contextmanager
def refusing() -> Iterator[None]:
    """Raise as WeightsError what is wrong with weights that are there."""
    try:
        yield
    except UserError as error:
        raise WeightsError(str(error)) from error


def load_weights(method: Method | DecodeMethod, group: str, settings: Settings, loaded: LoadedModel) -> FileIdentity | None:
    """Load the trained weights of a method. Returns what tells them from others, None where the method needs none.

    group: of the command line that names the method, "method" or "decode". Raises UserError where there is no file,
    WeightsError for one that does not fit the model.
    """
    if (name := method.weights_name()) is None:
        return None
    knobs = method.knobs()
    options = {} if method.gate is None else method.gate.unusual(knobs)
    own_name = None if method.gate is None else training_name(method.gate, knobs)
    training = settings.method_knobs.get("gates") if group == "method" else None
    if loaded.shape is not None:
        return _draw_weights(method, loaded, loaded.shape.seed, training)
    folder = weights_folder(settings.model, loaded)
    path = gate_files.find(folder, name, method.gate, released_id(settings.model, group), training=own_name)
    if path is None:
        size = "block_size" if group == "method" else f"{group}.block_size"
        raise UserError(
            f"no weights of {method.name} for {loaded.name} at block size {method.block_size}: {folder / name} is missing; "
            f"name the folder that has them (model.gates=FOLDER), or train them with "
            f"`python -m harness job=distill {group}={method.name} {model_overrides(settings.model)}"
            f"{size}={method.block_size}{'' if training is None else f' method.gates={training}'}{option_overrides(options)}`"
        )
    with refusing():
        stored = gate_files.read(path, method.gate, block_size=method.block_size, options=options)
        notices = gate_files.assumptions(path, method.gate)
        state = gate_files.for_all_layers(stored, path, loaded, settings.length)
        try:
            method.load(state, **model_shape(loaded))
        except ValueError as error:
            raise UserError(f"{path} does not fit {loaded.name}: {error}") from error
    return FileIdentity(tensors_hash(stored), file_hash(path), tuple(f"{method.name}: {notice}" for notice in notices))


def _draw_weights(method: Method | DecodeMethod, loaded: LoadedModel, seed: int, training: Any) -> FileIdentity:
    """Give a method gates that are drawn at random, for a model whose weights are too. Raises UserError for a training of gates
    that is asked for by name, and for a method whose weights are no gates."""
    if training is not None:
        raise UserError(f"method.gates={training}: {loaded.name} has random weights, and its gates are drawn: leave it out")
    if method.gate is None:
        raise UserError(f"{method.name} needs trained weights, and {loaded.name} has random ones: choose another method")
    sizes = model_shape(loaded)
    options = {name: value for name, value in method.knobs().items() if name in method.gate.options}
    of_layer: dict[str, Any] = {**options, **sizes, "block_size": method.block_size}
    layers = of_layer.pop("layers")
    state = draw_gates(partial(method.gate, **of_layer), layers, seed)
    method.load(state, **sizes)
    content = RANDOM + tensors_hash(state)
    return FileIdentity(content, content, (f"{method.name}: random gates (seed {seed})",))


def released_id(model: Mapping[str, Any], group: str) -> str | None:
    """Return the hub id of the gates that their authors released for a model, None where there are none.

    model: the settings of its group, as `Settings.model`; group: of the command line, "method" or "decode".
    """
    ids = model.get("released_gates") or {}
    return ids.get("prefill" if group == "method" else group)


def option_overrides(options: Mapping[str, Any]) -> str:
    """Return how options of a prefill method's gates are given on the command line, each with a space before it."""
    shown = {name: str(value).lower() if isinstance(value, bool) else value for name, value in options.items()}
    return "".join(f" method.{name}={value}" for name, value in shown.items())


def model_overrides(model: Mapping[str, Any]) -> str:
    """Return how a model is named on the command line, with a space after it; `hf` takes any path, and the folder of the
    weights is the same. model: the settings of its group, as `Settings.model`."""
    path = str(model["path"])
    return "model=bundled " if path == "bundled" else f"model=hf model.path={path} "
