"""The trained weights of a model's gates: the names of their files and tensors, and filling gates from them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from methods.gates.gate import Gate

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
"""Types that weights of gates may have in a file; gates compute in float32."""


def with_training_name(file: str, training: Any) -> str:
    """Return a weights file's name pattern with the name of a training in it, as gates-{block_size}-mass.safetensors.

    None leaves the pattern as it is. Raises ValueError for a name that can't be part of a file's name.
    """
    if training is None:
        return file
    if not isinstance(training, str) or re.fullmatch(r"[A-Za-z0-9_]+", training) is None:
        read_as = "" if isinstance(training, str) else f"; it is read as {type(training).__name__}"
        raise ValueError(f"gates={training}: must be a name of letters, digits and _, for example mass{read_as}")
    stem, dot, suffix = file.rpartition(".")
    return f"{stem}-{training}{dot}{suffix}"


def training_name(gate: type[Gate], knobs: Mapping[str, Any]) -> Any:
    """Return the name that a file of gates has for its training: the knob `gates`, then that of their unusual options, joined
    by _; None for neither. Raises ValueError for options that there aren't."""
    given, variant = knobs.get("gates"), gate.variant(knobs)
    return variant if given is None else f"{given}_{variant}" if variant and isinstance(given, str) else given


def gate_state(gates: Sequence[Gate]) -> dict[str, Tensor]:
    """Return the weights of all layers by their names in a file: layers.{i}.gate.k and, with q_linear, layers.{i}.gate.q."""
    return {
        f"layers.{layer}.gate.{name}": weight.detach()
        for layer, gate in enumerate(gates)
        for name, weight in gate.named_parameters()
    }


def draw_gates(make: Callable[[], Gate], layers: int, seed: int) -> dict[str, Tensor]:
    """Return drawn weights of the gates of so many layers, by their names in a file; make: returns the gate of a layer."""
    generator, gates = torch.Generator().manual_seed(seed), [make() for _ in range(layers)]
    for gate in gates:
        gate.draw(generator)
    return gate_state(gates)


def check_values(state: Mapping[str, Tensor]) -> None:
    """Raise ValueError, naming the tensor, unless all weights are floats of 16 to 64 bits and finite in float32."""
    for name, weight in state.items():
        if weight.dtype not in DTYPES or weight.layout != torch.strided:
            allowed = ", ".join(_named(dtype) for dtype in DTYPES)
            layout = "" if weight.layout == torch.strided else f", {_named(weight.layout)}"
            raise ValueError(f"{name} is of type {_named(weight.dtype)}{layout}: weights of gates must be one of {allowed}")
        if not bool(weight.detach().float().isfinite().all()):
            raise ValueError(f"{name} holds NaN or infinite values: a training that failed, or a damaged file")


def _named(part: torch.dtype | torch.layout) -> str:
    """Return what torch calls a type or layout, without the module."""
    return str(part).removeprefix("torch.")


def fill_gates(gates: Sequence[Gate], state: Mapping[str, Tensor], model: str) -> None:
    """Copy weights into the gates of a model, and freeze them.

    model: a description of the model for messages. Raises ValueError, one line, unless all names, shapes and types fit and
    all numbers are finite.
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
                f"{_other_pooling(name, state[name].shape, weight.shape, gates[0].k_ways) or 'it was made for another model'}"
            )
    check_values(state)
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(state[name])
    for gate in gates:
        gate.requires_grad_(False)


def _other_pooling(name: str, shape: torch.Size, expected: torch.Size, usual: Sequence[str]) -> str | None:
    """Return a line where a weight of pooled keys differs from what is expected in the number of poolings alone, else None.

    usual: the poolings that are expected.
    """
    if not name.endswith(".k") or len(shape) != len(expected) or (shape[0], shape[2:]) != (expected[0], expected[2:]):
        return None
    ways, rest = divmod(shape[1] * len(usual), expected[1])
    if rest or not ways:
        return None
    return f"it pools keys in {ways} way{'' if ways == 1 else 's'}, gates here in {len(usual)} ({', '.join(usual)})"


def first_names(names: Sequence[str], most: int = 4) -> str:
    """Return the first `most` names, and how many there are in all where that leaves some out."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown}, … ({len(names)} in all)"
