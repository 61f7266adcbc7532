"""Files of what a search found out about a model's heads: read, and handed to the method that they are for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.arms.weights import model_overrides, weights_folder
from harness.core.errors import UserError
from harness.core.files import read_json_object
from harness.models.loading import LoadedModel, model_shape
from harness.study.provenance import file_hash
from methods.parts.base import Method

AGAIN = "; search again with job=search_heads"


def load_head_file(method: Method, model: Mapping[str, Any], loaded: LoadedModel) -> str | None:
    """Give a method what a search found out about this model's heads. Returns the file's hash; None where the method takes no
    such file, or goes without.

    model: the settings of its group, as `Settings.model`; the file lies in its `weights_folder`, or where the method's knob
    says. Raises UserError where the method can't go without, or where the file is broken or another model's.
    """
    name = method.search_file()
    if name is None:
        return None
    named_by_user = name != method.searched
    path = Path(name).expanduser() if named_by_user else weights_folder(model, loaded) / name
    if not path.is_file():
        if named_by_user or method.search_required:
            elsewhere = "" if named_by_user else "name the folder that has it (model.gates=FOLDER), or "
            raise UserError(
                f"method {method.name} needs to know {loaded.name}'s heads: {path} is missing; {elsewhere}"
                f"search them with `{search_command(method.name, model)}`"
            )
        return None
    try:
        method.load_search(read_head_file(path), **model_shape(loaded))
    except ValueError as error:
        raise UserError(f"{path} does not fit {loaded.name}: {error}") from error
    return file_hash(path)


def read_head_file(path: Path) -> dict[str, Any]:
    """Read a file: JSON, or a table of numbers (.tsv: rows are layers, columns heads) as {"heads": rows}. Raises UserError."""
    if path.suffix != ".tsv":
        return read_json_object(path, AGAIN)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return {"heads": [[float(number) for number in line.split()] for line in lines if line.strip()]}
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be read: {error}{AGAIN}") from error


def search_command(method: str, model: Mapping[str, Any]) -> str:
    """Return the command that searches a model's heads for a method. model: the settings of its group."""
    return f"python -m harness job=search_heads method={method} {model_overrides(model).strip()}"
