"""Files of what a search found out about a model's heads: read, and handed to the method that they are for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from harness.arms.weights import FileIdentity, model_overrides, refusing, weights_folder
from harness.core.errors import UserError
from harness.core.input_files import read_json_object
from harness.models.loading import LoadedModel, model_shape
from harness.models.shape import RANDOM
from harness.study.provenance import file_hash, json_hash
from methods.parts.base import Method

AGAIN = "; search again with job=search_heads"
MADE = "made"
"""The key under which a file says how and when it was searched: it is no part of the result."""


def load_head_file(method: Method, model: Mapping[str, Any], loaded: LoadedModel) -> FileIdentity | None:
    """Give a method what a search found out about this model's heads. Returns what tells it from others; None where the method
    takes no such file, or goes without.

    model: the settings of its group, as `Settings.model`; the file lies in its `weights_folder`, or where the method's knob
    says. Raises UserError where the method can't go without, WeightsError where the file is broken or another model's.
    """
    name = method.search_file()
    if name is None:
        return None
    named_by_user = name != method.searched
    if loaded.shape is not None and not named_by_user:
        return _draw_search(method, loaded, loaded.shape.seed)
    path = Path(name).expanduser() if named_by_user else weights_folder(model, loaded) / name
    if not path.is_file():
        if loaded.shape is not None:
            raise UserError(
                f"method {method.name} needs searched heads, and {path} is missing: name a file that was searched on a model "
                "of this shape, or leave it out"
            )
        if named_by_user or method.needs_search():
            elsewhere = "" if named_by_user else "name the folder that has it (model.gates=FOLDER), or "
            raise UserError(
                f"method {method.name} needs to know {loaded.name}'s heads: {path} is missing; {elsewhere}"
                f"search them with `{search_command(method.name, model)}`"
            )
        return None
    with refusing():
        result = read_head_file(path)
        try:
            method.load_search(result, **model_shape(loaded))
        except ValueError as error:
            raise UserError(f"{path} does not fit {loaded.name}: {error}") from error
    searched = {name: value for name, value in result.items() if name != MADE}
    return FileIdentity(json_hash(searched), file_hash(path))


def _draw_search(method: Method, loaded: LoadedModel, seed: int) -> FileIdentity | None:
    """Give a method that needs one a drawn result of a search, for a model by shape, whose heads a search can't tell apart; let
    any other go without. Raises UserError for a method whose search has no result to draw."""
    if not method.needs_search():
        return None
    sizes = model_shape(loaded)
    result = method.draw_search(torch.Generator().manual_seed(seed), **sizes)
    if result is None:
        raise UserError(
            f"method {method.name} needs searched heads, and {loaded.name} has random weights, which no search can tell apart: "
            "name a file that was searched on a model of this shape, or choose another method"
        )
    method.load_search(result, **sizes)
    content = RANDOM + json_hash(dict(result))
    return FileIdentity(content, content, (f"{method.name}: random heads (seed {seed})",))


def read_head_file(path: Path) -> dict[str, Any]:
    """Read a file: JSON, or a table of numbers (.tsv: rows are layers, columns heads) as {"heads": rows}.

    Raises UserError for what is neither, for numbers that are not finite, and for a key that stands there twice.
    """
    if path.suffix != ".tsv":
        content = read_json_object(path, AGAIN)
        try:
            json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant, object_pairs_hook=_without_duplicates)
        except ValueError as error:
            raise UserError(f"{path} can't be taken: {error}{AGAIN}") from error
        return content
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return {"heads": [[float(number) for number in line.split()] for line in lines if line.strip()]}
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be read: {error}{AGAIN}") from error


def _refuse_constant(word: str) -> None:
    """Raise ValueError for NaN and the infinities, which Python's JSON would take."""
    raise ValueError(f"it holds {word}: numbers must be finite")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object of these pairs. Raises ValueError where a key comes twice: JSON would take the last."""
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it has {next(name for name in names if names.count(name) > 1)} twice")
    return content


def search_command(method: str, model: Mapping[str, Any]) -> str:
    """Return the command that searches a model's heads for a method. model: the settings of its group."""
    return f"python -m harness job=search_heads method={method} {model_overrides(model).strip()}"
