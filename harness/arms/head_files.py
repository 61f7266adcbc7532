"""What was searched offline in a model's heads, read from its file and handed to the method that it is for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.core.errors import UserError
from harness.core.files import read_json_object
from harness.core.settings import Settings
from harness.models.loading import LoadedModel
from harness.study.provenance import file_hash
from methods.parts.base import Method

AGAIN = "; search again with job=search_heads"


def load(method: Method, folder: Path, settings: Settings, loaded: LoadedModel) -> str | None:
    """Give the method what was found for this model, in `folder` or where the user says. Returns the file's hash; None where
    the method takes nothing, or goes without. Raises UserError where it can't, or where the file is none or another model's."""
    name = method.search_file()
    if name is None:
        return None
    given = name != method.searched
    path = Path(name).expanduser() if given else folder / name
    if not path.is_file():
        if given or method.search_required:
            elsewhere = "" if given else "name the folder that has it (model.gates=FOLDER), or "
            raise UserError(
                f"method {method.name} needs to know {loaded.name}'s heads: {path} is missing; {elsewhere}"
                f"search them with `python -m harness job=search_heads method={method.name} "
                f"{model_overrides(settings).strip()}`"
            )
        return None
    try:
        method.load_search(read(path), **model_shape(loaded))
    except ValueError as error:
        raise UserError(f"{path} does not fit {loaded.name}: {error}") from error
    return file_hash(path)


def read(path: Path) -> dict[str, Any]:
    """What a file holds: JSON, or a table of numbers (.tsv: rows are layers, columns heads) as {"heads": rows}."""
    if path.suffix != ".tsv":
        return read_json_object(path, AGAIN)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return {"heads": [[float(number) for number in line.split()] for line in lines if line.strip()]}
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be read: {error}{AGAIN}") from error


def model_shape(loaded: LoadedModel) -> dict[str, int]:
    """The sizes by which a method knows whether a file is of this model."""
    return {"layers": loaded.layers, "heads": loaded.heads, "kv_heads": loaded.kv_heads, "head_dim": loaded.head_dim}


def model_overrides(settings: Settings) -> str:
    """How this model is named on the command line; `hf` takes any path, and the folder of the gates is the same."""
    path = str(settings.model["path"])
    return "model=bundled " if path == "bundled" else f"model=hf model.path={path} "
