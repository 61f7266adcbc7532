"""The folder of a fine-tuned model: what `model=hf model.path=FOLDER` loads, its gates, and what it was trained by."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from harness.core.errors import UserError
from harness.core.files import write_atomically
from harness.core.input_files import read_json_object
from harness.models.loading import local_layers
from harness.training.bundled_model.save import WEIGHTS, save_model
from harness.training.finetune.finetune import Finetuning
from harness.training.finetune.sharded import whole
from harness.training.gates.weights import SAVED, save_gates, saved_dtype

FACTS = "finetuning.json"
"""The file of a folder that says how its model was fine-tuned."""


def round_weights(training: Finetuning) -> None:
    """Round the weights of a model that has ended to the dtype that its file will have: auto is float32."""
    dtype = SAVED.get(training.recipe.recipe.dtype)
    if dtype is not None:
        for weight in training.weights:
            with torch.no_grad():
                weight.copy_(weight.to(dtype))  # in place: of shared layers FSDP holds the same memory


def save(training: Finetuning, out: Path, about: Mapping[str, Any], held_out_loss: float | None) -> None:
    """Write gates, facts and model into folder `out`, the model's weights last: where they are, everything is.

    Of several processes the main one writes; where the model is shared, all give their parts.
    """
    model = training.loaded.model.requires_grad_(False)
    if (dtype := SAVED.get(training.recipe.recipe.dtype)) is not None:
        model.to(dtype)  # what is no weight is not in the file
    state = whole(model.state_dict(), keep=training.processes.main) if training.sharded else None
    if not training.processes.main:
        return
    last, own = training.steps[-1], training.recipe.recipe
    numbers = {"tokens": last.tokens, "loss": last.loss, "gate_loss": last.gate_loss, "held_out_loss": held_out_loss}
    (out / WEIGHTS).unlink(missing_ok=True)  # of a model that is replaced: its folder would be of two
    if training.gates is not None and training.arm.spec is not None:
        local = local_layers(training.loaded)
        parameters = sum(weight.numel() for weight in training.gate_weights)
        metadata = {**own.facts(), **about, "tokens": last.tokens, "loss": last.gate_loss, "recall": last.recall}
        path = out / training.arm.spec.file_name
        save_gates(training.gates, path, dtype=saved_dtype(own.dtype, parameters), recipe=metadata, local=local)
    text = json.dumps({"about": about, **numbers}, indent=1, sort_keys=True) + "\n"
    write_atomically(out / FACTS, lambda file: file.write(text.encode()))
    save_model(model, training.loaded.tokenizer, out, state)


def is_of(weights: Path, about: dict[str, Any]) -> bool:
    """Return whether the folder of a model's weights says that they were trained with these settings."""
    with suppress(UserError):
        return bool(read_json_object(weights.with_name(FACTS)).get("about") == json.loads(json.dumps(about)))
    return False
