"""``python -m harness job=convert_gates``: a release of gates as a file of this harness, or the other way round.

The weights are the same, bit by bit and in the same dtype; only names and container change (methods.gates.release_format).
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor

from harness.arms import gate_files
from harness.arms.build import decodes_densely
from harness.arms.weights import released_id
from harness.core.errors import UserError
from harness.core.files import write_atomically
from harness.core.settings import Settings, read_settings
from harness.core.terminal import Terminal
from harness.study.provenance import file_hash
from harness.training.gates.gate_spec import GateSpec, gate_spec
from harness.training.gates.weights import safetensors_bytes
from methods.gates import release_format

FORMATS = ("harness", "release")


def main(cfg: DictConfig) -> Path:
    """Convert and save; return the path. What is there with the same content stays, as after a kill.

    Raises UserError for a file of something else that is there, or one that can't be converted.
    """
    settings = read_settings(cfg)
    spec, to = gate_spec(settings), settings.options["to"]
    if to not in FORMATS:
        raise UserError(f"job.to={to}: must be one of {', '.join(FORMATS)}")
    if not spec.kind.released:
        raise UserError("the gates of this method have never been released: there is nothing to convert")
    _check_usual(spec.kind.variant(spec.options), "the settings ask for")
    out = Path(str(settings.options["out"])).expanduser()
    source, overwrite = _source(settings, spec, to), bool(settings.options["overwrite"])
    for notice in gate_files.assumptions(source, spec.kind):
        Terminal(stderr=True).print(notice, style="red", highlight=False, soft_wrap=True)
    if to == "harness":
        path = to_harness(source, spec, out, overwrite=overwrite)
    else:
        path = to_release(source, spec, out, model=str(settings.model["path"]), overwrite=overwrite)
    console = Terminal()
    for line in (f"wrote {path}", f"to use it: model.gates={out}"):
        console.print(line, highlight=False, soft_wrap=True)
    return path


def to_harness(source: Path, spec: GateSpec, out: Path, *, overwrite: bool = False) -> Path:
    """Write a release's weights into folder `out` under the name that the method looks for, its settings as metadata.

    The release's hash is that of its file, as the hub's page shows it. Return the path. Raises UserError where a file of
    something else is there and `overwrite` isn't set.
    """
    state, config = _read_all(source, spec), gate_files.read_config(source)
    settings = {key: value for key, value in config.items() if key.startswith("seerattn_")}
    block_size = release_format.block_size_of(config)
    recipe = {
        "block_size": block_size,
        "model": config.get("base_model"),
        "release": settings,
        "release_hash": file_hash(source),
    }
    metadata = {key: json.dumps(value) for key, value in recipe.items()}
    path = out / spec.file.format(block_size=block_size)
    content = safetensors_bytes({name: weight.contiguous() for name, weight in state.items()}, metadata)
    if not overwrite and path.exists():
        if path.read_bytes() == content:
            return path
        raise _exists(path)
    return write_atomically(path, lambda file: file.write(content))


def to_release(source: Path, spec: GateSpec, out: Path, *, model: str, overwrite: bool = False) -> Path:
    """Write the harness's weights into folder `out` as a release has them; return the path.

    The seerattn_ settings lie beside them: the original's loader looks for those in the model's own config.json. Raises
    UserError for gates of another block size, or a file of something else that is there where `overwrite` isn't set.
    """
    state = _read_all(source, spec)
    block_size = _recorded_block_size(source)
    if block_size not in (None, spec.block_size):
        raise UserError(f"{source} has gates for blocks of {block_size} tokens, not {spec.block_size}: set that block_size")
    _check_usual(spec.kind.variant(gate_files.read_metadata(source)), f"{source} has")
    renamed = {key: weight.clone() for key, weight in release_format.to_released(state, spec.kind).items()}
    settings = gate_files.read_metadata(source).get("release", spec.kind.released_config)  # of gates trained here, all
    known = {*settings, *spec.kind.told_by_weights}  # what was assumed of another release is not said of this one
    config = {
        "base_model": model,
        "seerattn_gate_block_size": spec.block_size,
        "seerattn_gate_hidden_size": state["layers.0.gate.k"].shape[-1],
        **{name: value for name, value in spec.kind.released_config.items() if name in known},
    }
    path, config_path = out / release_format.FILE, out / release_format.CONFIG
    config_text = json.dumps(config, indent=2).encode() + b"\n"
    if not overwrite and config_path.exists() and config_path.read_bytes() != config_text:
        raise _exists(config_path)
    if not overwrite and path.exists():
        if config_path.exists() and _holds(path, spec, state):
            return path
        raise _exists(path)
    write_atomically(config_path, lambda file: file.write(config_text))
    return write_atomically(path, lambda file: torch.save(renamed, file))


def _check_usual(variant: str | None, what: str) -> None:
    """Raise UserError for gates whose options no release has. variant: of the gates; what: says where they are named."""
    if variant is not None:
        raise UserError(f"{what} gates of options that no release has ({variant}): there is nothing to convert")


def _source(settings: Settings, spec: GateSpec, to: str) -> Path:
    """Return the file to read: the one that is named, or in the named folder, or the release that the model's config names."""
    option = settings.options["source"]
    name = release_format.FILE if to == "harness" else spec.file_name
    if option is None:
        hub_id = (
            released_id(settings.model, "method" if decodes_densely(settings.decode) else "decode") if to == "harness" else None
        )
        if hub_id is None:
            raise UserError(f"job.source has no value: give the file, or the folder of {name}")
        return gate_files.download(hub_id)
    path = Path(str(option)).expanduser()
    path = path / name if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"job.source={option}: {path} is missing; give the file, or the folder of {name}")
    if path.suffix != Path(name).suffix:
        raise UserError(f"job.source={option}: with job.to={to} it must be a {Path(name).suffix} file")
    return path


def _read_all(source: Path, spec: GateSpec) -> dict[str, Tensor]:
    """Return the weights of a file. Raises UserError where a layer is missing or a name unknown."""
    state = gate_files.read(source, spec.kind)
    try:
        release_format.check_whole(state)
        release_format.to_released(state, spec.kind)  # all names are known
    except ValueError as error:
        raise UserError(f"{source} doesn't fit: {error}") from error
    return state


def _recorded_block_size(source: Path) -> int | None:
    """Return the block size that a file of the harness records, None where it doesn't."""
    from safetensors import safe_open

    with safe_open(str(source), framework="pt") as file:
        size = (file.metadata() or {}).get("block_size")
    if size is None:
        return None
    if not size.isdecimal():
        raise UserError(f"{source}: its metadata say block_size={size[:40]}, which is no whole number: train the gates again")
    return int(size)


def _holds(path: Path, spec: GateSpec, state: dict[str, Tensor]) -> bool:
    """Return whether a file has exactly these weights, under the names of the harness."""
    weights = gate_files.read(path, spec.kind)
    same_names = weights.keys() == state.keys()
    return same_names and all(weights[name].dtype == w.dtype and torch.equal(weights[name], w) for name, w in state.items())


def _exists(path: Path) -> UserError:
    """Return the error of a file that is there and is not to be replaced."""
    return UserError(f"{path} exists: add job.overwrite=true to replace it, or name another folder with job.out=FOLDER")
