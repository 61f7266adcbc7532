"""``python -m harness job=convert_gates``: a release of gates as a file of this harness, or the other way round.

The weights are the same, bit by bit and in the same dtype; only names and container change (methods.gates.released).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from rich.console import Console
from torch import Tensor

from harness.arms import gate_files
from harness.arms.build import decodes_densely
from harness.arms.weights import released_id
from harness.core.errors import UserError
from harness.core.files import write_whole
from harness.core.settings import Settings, read_settings
from harness.study.provenance import file_hash
from harness.training.gates.distill_job import Lesson, lesson_of
from methods.gates import released

FORMATS = ("harness", "release")


def main(cfg: DictConfig) -> Path:
    """Convert and save. Raises UserError for a file that is there, or one that can't be converted."""
    settings = read_settings(cfg)
    lesson, to = lesson_of(settings), settings.options["to"]
    if to not in FORMATS:
        raise UserError(f"job.to={to}: must be one of {', '.join(FORMATS)}")
    if not lesson.kind.released:
        raise UserError("the gates of this method have never been released: there is nothing to convert")
    out = Path(str(settings.options["out"])).expanduser()
    source, overwrite = _source(settings, lesson, to), bool(settings.options["overwrite"])
    if to == "harness":
        path = to_harness(source, lesson, out, overwrite=overwrite)
    else:
        path = to_release(source, lesson, out, model=str(settings.model["path"]), overwrite=overwrite)
    Console().print(f"wrote {path}\nto use it: model.gates={out}", highlight=False, soft_wrap=True)
    return path


def to_harness(source: Path, lesson: Lesson, out: Path, *, overwrite: bool = False) -> Path:
    """Write a release's weights into folder `out` under the name that the method looks for, with its settings as metadata."""
    from safetensors.torch import save

    state, config = _whole(source, lesson), gate_files.read_config(source)
    settings = {key: value for key, value in config.items() if key.startswith("seerattn_")}
    block_size = released.block_size_of(config)
    recipe = {
        "block_size": block_size,
        "model": config.get("base_model"),
        "release": settings,
        "release_hash": file_hash(source),
    }
    metadata = {key: json.dumps(value) for key, value in recipe.items()}
    path = _free(out / lesson.file.format(block_size=block_size), overwrite)
    whole = save({name: weight.contiguous() for name, weight in state.items()}, metadata=metadata)
    return write_whole(path, lambda file: file.write(whole))


def to_release(source: Path, lesson: Lesson, out: Path, *, model: str, overwrite: bool = False) -> Path:
    """Write our weights into folder `out` as a release has them, with the seerattn_ settings beside them: the original's loader
    wants those in the model's own config.json."""
    state = _whole(source, lesson)
    block_size = _recorded(source).get("block_size", lesson.block_size)
    if block_size != lesson.block_size:
        raise UserError(f"{source} has gates for blocks of {block_size} tokens, not {lesson.block_size}: set that block_size")
    theirs = {key: weight.clone() for key, weight in released.to_released(state, lesson.kind).items()}
    config = {
        "base_model": model,
        "seerattn_gate_block_size": lesson.block_size,
        "seerattn_gate_hidden_size": state["layers.0.gate.k"].shape[-1],
        **lesson.kind.released_config,
    }
    path, beside = _free(out / released.FILE, overwrite), _free(out / released.CONFIG, overwrite)
    write_whole(beside, lambda file: file.write(json.dumps(config, indent=2).encode() + b"\n"))
    return write_whole(path, lambda file: torch.save(theirs, file))


def _source(settings: Settings, lesson: Lesson, to: str) -> Path:
    """The file to read: the one that is named, or in the folder that is named, or the release that the model's config names."""
    given = settings.options["source"]
    name = released.FILE if to == "harness" else lesson.file.format(block_size=lesson.block_size)
    if given is None:
        hub_id = (
            released_id(settings.model, "method" if decodes_densely(settings.decode) else "decode") if to == "harness" else None
        )
        if hub_id is None:
            raise UserError(f"job.source has no value: give the file, or the folder of {name}")
        return gate_files.download(hub_id)
    path = Path(str(given)).expanduser()
    path = path / name if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"job.source={given}: {path} is missing; give the file, or the folder of {name}")
    if path.suffix != Path(name).suffix:
        raise UserError(f"job.source={given}: with job.to={to} it must be a {Path(name).suffix} file")
    return path


def _whole(source: Path, lesson: Lesson) -> dict[str, Tensor]:
    """The weights of a file, no layer missing."""
    state = gate_files.read(source, lesson.kind)
    try:
        released.check_whole(state)
        released.to_released(state, lesson.kind)  # all names are known
    except ValueError as error:
        raise UserError(f"{source} doesn't fit: {error}") from error
    return state


def _recorded(source: Path) -> dict[str, Any]:
    """How our file says it was made."""
    from safetensors import safe_open

    with safe_open(str(source), framework="pt") as file:
        return {key: json.loads(value) for key, value in (file.metadata() or {}).items() if key == "block_size"}


def _free(path: Path, overwrite: bool) -> Path:
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists: add job.overwrite=true to replace it, or name another folder with job.out=FOLDER")
    return path
