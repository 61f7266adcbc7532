"""A trained model in its folder: whole, or none that loads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from harness.core.files import partial_folder

WEIGHTS = "model.safetensors"


def save_model(model: Any, tokenizer: Any, out: Path, state: Mapping[str, Tensor] | None = None) -> None:
    """Write a model and its tokenizer into a folder, in place of another.

    state: its weights, where they are not the ones that it holds. A kill leaves the old model, the new one, or none that
    loads, and never parts of two.
    """
    with partial_folder(out / WEIGHTS) as folder:
        model.save_pretrained(folder, state_dict=state)
        tokenizer.save_pretrained(folder)
        (out / WEIGHTS).unlink(missing_ok=True)
        for file in sorted(folder.iterdir(), key=lambda file: (file.name == WEIGHTS, file.name)):  # the weights last
            file.replace(out / file.name)
