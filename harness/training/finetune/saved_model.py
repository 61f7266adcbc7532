"""The folder of a fine-tuned model: what `model=hf model.path=FOLDER` loads, its gates, and what it was trained by."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness.core.errors import UserError
from harness.core.files import write_atomically
from harness.core.input_files import read_json_object
from harness.models.loading import local_layers
from harness.training.bundled_model.save import WEIGHTS, save_model
from harness.training.finetune.finetune import Finetuning
from harness.training.gates.weights import SAVED, save_gates, saved_dtype

FACTS = "finetuning.json"
"""The file of a folder that says how its model was fine-tuned."""


def round_weights(training: Finetuning) -> None:
    """Round the weights of a model that has ended to the dtype that its file will have: auto is float32."""
    dtype = SAVED.get(training.recipe.recipe.dtype)
    if dtype is not None:
        for weight in training.weights:
            weight.data = weight.data.to(dtype).to(weight.dtype)


def save(training: Finetuning, out: Path, about: Mapping[str, Any], held_out_loss: float | None) -> None:
    """Write gates, facts and model into folder `out`, the model's weights last: where they are, everything is."""
    last, own = training.steps[-1], training.recipe.recipe
    numbers = {"tokens": last.tokens, "loss": last.loss, "gate_loss": last.gate_loss, "held_out_loss": held_out_loss}
    (out / WEIGHTS).unlink(missing_ok=True)  # of a model that is replaced: its folder would be of two
    if training.gates is not None and training.arm.spec is not None:
        local = local_layers(training.loaded)
        parameters = sum(weight.numel() for weight in training.gate_weights)
        metadata = {**asdict(own), **about, "tokens": last.tokens, "loss": last.gate_loss, "recall": last.recall}
        path, dtype = out / training.arm.spec.file_name, saved_dtype(own.dtype, parameters)
        save_gates(training.gates, path, dtype=dtype, recipe=metadata, local=local)
    text = json.dumps({"about": about, **numbers}, indent=1, sort_keys=True) + "\n"
    write_atomically(out / FACTS, lambda file: file.write(text.encode()))
    model = training.loaded.model.requires_grad_(False)
    if own.dtype != "auto":
        model.to(SAVED[own.dtype])  # what is no weight is not in the file
    save_model(model, training.loaded.tokenizer, out)


def is_of(weights: Path, about: dict[str, Any]) -> bool:
    """Return whether the folder of a model's weights says that they were trained with these settings."""
    with suppress(UserError):
        return bool(read_json_object(weights.with_name(FACTS)).get("about") == json.loads(json.dumps(about)))
    return False
