"""A trained model in its folder: whole, or none that loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.core.files import partial_folder

WEIGHTS = "model.safetensors"


def save_model(model: Any, tokenizer: Any, out: Path) -> None:
    """Write a model and its tokenizer into a folder, in place of another.

    A kill leaves the old one, the new one, or none that loads, and never parts of two.
    """
    with partial_folder(out / WEIGHTS) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        (out / WEIGHTS).unlink(missing_ok=True)
        for file in sorted(folder.iterdir(), key=lambda file: (file.name == WEIGHTS, file.name)):  # the weights last
            file.replace(out / file.name)
