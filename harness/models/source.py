"""Where a model is read from, told without loading it and without torch: the bundled folder, the user's, or the hub."""

from __future__ import annotations

import os
from pathlib import Path

from harness.core.errors import UserError, first_line
from harness.core.hub import find_hub, hub_error
from harness.core.input_files import read_json_object
from harness.core.model_settings import check_path

BUNDLED = Path(__file__).resolve().parents[1] / "bundled"
"""The folder of the small model that ships with the package."""
JSON_FILES = ("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.json")
"""Files of a model that must each hold a JSON object, where they are there."""


def model_folder(path: str) -> Path | None:
    """Return the local folder that `path` means, or None if it is a hub id. Raises UserError for a folder without a model."""
    bundled = path == "bundled"
    folder = BUNDLED if bundled else Path(path).expanduser()
    if not bundled and not os.path.isdir(folder):
        if os.path.exists(folder):
            raise UserError(f"model.path={path} is a file; give the folder that has config.json and the weights")
        if path.startswith(("/", ".", "~")) or path.count("/") > 1:
            raise UserError(f"model folder {path} does not exist; give one with config.json, or a hub id OWNER/NAME")
        check_path(path)
        return None
    missing = [name for name in ("config.json", "model*.safetensors") if not any(folder.glob(name))]
    if missing and bundled:
        raise UserError(
            f"the bundled model is not there ({' and '.join(missing)} missing in {folder}): make it with "
            "`python -m harness job=pretrain`, or choose another: model=hf model.path=FOLDER"
        )
    if missing:
        raise UserError(f"{folder} is no model folder: {' and '.join(missing)} missing; save_pretrained() makes one")
    return folder


def check_model(path: str) -> None:
    """Raise UserError where a model can't be had: no folder and nothing that the hub, or its cache, has; or one whose config
    can't be read."""
    folder = model_folder(path)
    if folder is not None:
        read_json_object(folder / "config.json", "; save_pretrained() makes one")
    elif (offline := find_hub()) is not None:
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        try:
            cached = try_to_load_from_cache(path, "config.json")
        except HFValidationError as error:
            raise UserError(f"{no_model(path)}: {first_line(error)}") from None
        if not isinstance(cached, str):
            raise UserError(not_loaded(path, None, FileNotFoundError(path), offline))


def not_loaded(path: str, folder: Path | None, error: BaseException, offline: str | None) -> str:
    """Return in one line why a model can't be loaded. folder: that was read, None for the hub's. offline: why the hub can't be
    reached, None where it can or wasn't needed."""
    if folder is None:
        return (
            f"{no_model(path)}: {hub_error(error, offline)}; without network, or for a model that needs a login, download it "
            "and give its folder: model=hf model.path=FOLDER"
        )
    try:
        for name in JSON_FILES:
            if (folder / name).exists():
                read_json_object(folder / name)
    except UserError as broken_file:
        return f"can't load the model in {folder}: {broken_file}"
    return f"can't load the model in {folder}: {in_one_line(error)}"


def no_model(path: str) -> str:
    """Return the beginning of the line for what is no folder, and can't be had from the hub either."""
    return f"can't load {path}: there is no such folder, and as a model of the hub"


def in_one_line(error: BaseException) -> str:
    """Return the text of a library's error, of which two lines belong together, and of more the first says what is wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines) if len(lines) <= 2 else lines[0]
    return text if isinstance(error, OSError | ValueError) and text else f"{type(error).__name__}: {text}"
