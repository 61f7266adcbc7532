"""The trained weights of a model's gates: the names of their files and tensors, and filling gates from them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from methods.gates.gate import Gate


def with_training_name(file: str, training: Any) -> str:
    """Return a weights file's name pattern with the name of a training in it, as gates-{block_size}-mass.safetensors.

    None leaves the pattern as it is. Raises ValueError for a name that can't be part of a file's name.
    """
    if training is None:
        return file
    if not isinstance(training, str) or re.fullmatch(r"[A-Za-z0-9_]+", training) is None:
        raise ValueError(f"gates={training}: must be a name of letters, digits and _, for example mass")
    stem, dot, suffix = file.rpartition(".")
    return f"{stem}-{training}{dot}{suffix}"


def gate_state(gates: Sequence[Gate]) -> dict[str, Tensor]:
    """Return the weights of all layers by their names in a file: layers.{i}.gate.k and, with q_linear, layers.{i}.gate.q."""
    return {
        f"layers.{layer}.gate.{name}": weight.detach()
        for layer, gate in enumerate(gates)
        for name, weight in gate.named_parameters()
    }


def fill_gates(gates: Sequence[Gate], state: Mapping[str, Tensor], model: str) -> None:
    """Copy weights into the gates of a model, and freeze them.

    model: a description of the model for messages. Raises ValueError, one line, unless all names and shapes fit.
    """
    weights = gate_state(gates)
    missing, unknown = sorted(weights.keys() - state.keys()), sorted(state.keys() - weights.keys())
    if missing or unknown:
        lacks = [f"lack {first_names(missing)}"] if missing else []
        extras = [f"have {first_names(unknown)} that it has no place for"] if unknown else []
        raise ValueError(f"the gate weights {' and '.join(lacks + extras)}: {model}; they are another model's")
    for name, weight in weights.items():
        if state[name].shape != weight.shape:
            raise ValueError(
                f"gate weight {name} has shape {list(state[name].shape)}, not {list(weight.shape)}: {model}; "
                "it was made for another model"
            )
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(state[name])
    for gate in gates:
        gate.requires_grad_(False)


def first_names(names: Sequence[str], most: int = 4) -> str:
    """Return the first `most` names, and how many there are in all where that leaves some out."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown}, … ({len(names)} in all)"
