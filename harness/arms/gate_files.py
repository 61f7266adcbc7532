"""Files of trained gates, in a folder or on the hub: written by job=distill (safetensors), or released by the authors of the
method (methods.gates.release_format)."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.core.errors import UserError
from harness.core.hub import find_hub, hub_error
from harness.core.input_files import read_json_object
from harness.models.loading import LoadedModel, local_layers, local_window
from methods.gates import release_format
from methods.gates.gate import Gate
from methods.gates.weights import check_values


def find(folder: Path, name: str, gate: type[Gate] | None, hub_id: str | None, *, training: Any = None) -> Path | None:
    """Return the file of a method's weights: `name` in the folder, else a release in it, else the release of that id on the hub
    (downloaded once, with its settings). None where there is none.

    gate: what the method's weights are of. training: the name of one of several trainings; no release stands for it.
    Raises UserError where the hub can't be reached.
    """
    choices = [name] if gate is None or not gate.released or training is not None else [name, release_format.FILE]
    for choice in choices:
        if (folder / choice).is_file():
            return folder / choice
    if hub_id is None or len(choices) == 1:
        return None
    return download(hub_id)


def download(hub_id: str) -> Path:
    """Return a release's file of weights in the hub's cache, its settings beside it, downloaded once. Raises UserError."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    offline = find_hub()
    try:
        hf_hub_download(hub_id, release_format.CONFIG)
        return Path(hf_hub_download(hub_id, release_format.FILE))
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        raise UserError(
            f"can't get {release_format.FILE} of {hub_id} from the hub: {hub_error(error, offline)}; download it and its "
            f"{release_format.CONFIG} and give their folder (model.gates=FOLDER), or train gates (job=distill)"
        ) from error


def read(
    path: Path, gate: type[Gate] | None, *, block_size: int | None = None, options: Mapping[str, Any] | None = None
) -> dict[str, Tensor]:
    """Read the weights in a file, to the CPU, by the names that Gate gives them.

    block_size: that the gates must be of, None for any. options: of the gates, those that are not as usual; None: any. Raises
    UserError for a file that is broken, for weights that are no finite floats, and for gates of another kind, block size or
    options than the file's settings or metadata say.
    """
    released = path.suffix == ".pth"
    state = _pickled(path) if released else _safetensors(path)
    try:
        check_values(state)
        if not released:
            _check_block_size(path, block_size)
            if gate is not None and options is not None:
                _check_options(path, gate, options)
            return state
        assert gate is not None  # only a gate that is released is looked for under this name
        release_format.check_config(read_config(path), gate, block_size)
        return release_format.from_released(state, gate)
    except ValueError as error:
        raise UserError(f"{path} doesn't fit: {error}") from error


def assumptions(path: Path, gate: type[Gate] | None) -> tuple[str, ...]:
    """Return a line for what must be assumed of gates because neither settings nor metadata say it; none where nothing must.

    Raises UserError where the name of the file or its folder contradicts what would be assumed.
    """
    if gate is None or not gate.released:
        return ()
    released = path.suffix == ".pth"
    if released:
        settings: Any = read_config(path)
    else:
        metadata = read_metadata(path)
        settings = metadata.get("release") if metadata else {}  # gates that were trained here have other metadata
    if not isinstance(settings, Mapping):
        return ()
    try:
        assumed = release_format.assumed_settings(settings, gate, _names(path))
    except ValueError as error:
        raise UserError(f"{path} doesn't fit: {error}") from error
    if released and release_format.BLOCK_SIZE_KEY not in settings:
        assumed.append(f"{release_format.BLOCK_SIZE_KEY}={release_format.BLOCK_SIZE}")
    if not assumed:
        return ()
    says = f"no {release_format.CONFIG} beside it says" if released else "its metadata don't say"
    where = f"{path.absolute().parent.name}/{path.name}"  # a record holds the line, and is published
    return (f"{where}: {says} what its gates are, assumed {', '.join(assumed)}",)


def _names(path: Path) -> list[str]:
    """Return the names that may tell what a file of gates is: its own, its folder's, and in the hub's cache the release's."""
    cached = [part for part in path.parts if part.startswith("models--")]
    return [path.stem, path.absolute().parent.name, *cached]


def _check_block_size(path: Path, block_size: int | None) -> None:
    """Raise ValueError where the metadata of gates say another block size."""
    recorded = read_metadata(path).get("block_size", block_size)
    if block_size is not None and recorded != block_size:
        raise ValueError(f"its gates are for blocks of {recorded} tokens, not {block_size}, whatever it is called")


def _check_options(path: Path, gate: type[Gate], options: Mapping[str, Any]) -> None:
    """Raise ValueError where the metadata of gates say other options; what they do not say is as usual."""
    metadata = read_metadata(path)
    for name, usual in gate.options.items():
        recorded, asked = metadata.get(name, usual), options.get(name, usual)
        if recorded != asked and name not in gate.options_in_names:
            shown = str(recorded).lower() if isinstance(recorded, bool) else recorded
            raise ValueError(f"its gates were trained with method.{name}={shown}: use them with that, or name others")


def for_all_layers(state: dict[str, Tensor], path: Path, loaded: LoadedModel, shortest: int) -> dict[str, Tensor]:
    """Return the weights of a file for all layers of a model, local ones that the file leaves out filled with zeros.

    Raises UserError where prompts of `shortest` tokens fit in the window of such layers: there these layers choose too.
    """
    weights, window = add_local_layers(state, local_layers(loaded)), local_window(loaded)
    if len(weights) > len(state) and shortest <= window:
        raise UserError(
            f"{path} leaves out the layers of a sliding window, which choose blocks too where a prompt fits in its {window} "
            f"tokens: take prompts of more than {window} tokens, not {shortest}, or train with {window} among job.lengths"
        )
    return weights


def add_local_layers(state: dict[str, Tensor], local: Iterable[int]) -> dict[str, Tensor]:
    """Return the weights with zeros for the layers of `local` (models.loading.local_layers) that they leave out: past their
    window these layers choose nothing (`for_all_layers` sees to it that prompts are longer)."""
    present = {int(name.split(".")[1]) for name in state if name.startswith("layers.") and name.split(".")[1].isdigit()}
    if not present:
        return state
    first = {name: weight for name, weight in state.items() if name.startswith(f"layers.{min(present)}.")}
    zeros = {
        f"layers.{layer}.{name.split('.', 2)[2]}": torch.zeros_like(weight)
        for layer in set(local) - present
        for name, weight in first.items()
    }
    return state | zeros


def read_config(path: Path) -> dict[str, Any]:
    """Read the settings beside a release's weights; none where the weights lie alone. Raises UserError for a broken file."""
    file = path.with_name(release_format.CONFIG)
    return read_json_object(file) if file.is_file() else {}


def read_metadata(path: Path) -> dict[str, Any]:
    """Read the metadata of a safetensors file, each value as JSON or else as it is. Raises UserError for a broken file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is no safetensors file ({error}); train the weights again with job=distill") from error
    return {key: _json_or_text(value) for key, value in metadata.items()}


def _json_or_text(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value


def _pickled(path: Path) -> dict[str, Tensor]:
    """Read a dict of tensors that torch.save wrote; nothing else is unpickled. Raises UserError."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(f"{path} can't be read as a file of weights ({first}); download it again") from error
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(w, Tensor) for k, w in state.items()):
        raise UserError(f"{path} holds no weights: a dict of tensors by name was expected, as {release_format.FILE} is")
    return state


def _safetensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file. Raises UserError."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(str(path))
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is no safetensors file ({error}); train the weights again with job=distill") from error
