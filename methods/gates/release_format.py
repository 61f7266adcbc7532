"""The format in which SeerAttention's authors release gates: names of weights and settings, and renaming both ways.

A release is a folder with `attn_gate_weights.pth`, a dict of bfloat16 tensors named
model.layers.{i}.self_attn.attn_gate.{name}.weight, and a `config.json` with settings named seerattn_*. The gates here have the
same weights in the same layout (x @ W for each head), under names of their own: layers.{i}.gate.{name}. `Gate.released` pairs
the names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from methods.gates.gate import Gate
from methods.gates.weights import first_names

FILE = "attn_gate_weights.pth"
"""Name of a release's file of weights."""
CONFIG = "config.json"
"""Name of the file of settings beside it."""
BLOCK_SIZE = 64
"""Block size of the gates that were released, where no settings say another."""

BLOCK_SIZE_KEY = "seerattn_gate_block_size"
"""The setting of a release that holds its block size."""

_POOLING = re.compile(r"(?<![A-Za-z])Q(?:max|min|avg|mean|proj|orig)+_K(?:max|min|avg|mean)+(?![A-Za-z])", re.IGNORECASE)
_RELEASED_NAME = re.compile(r"(?:.*\.)?layers\.(\d+)\.self_attn\.attn_gate\.(\w+?)(?:\.weight)?")
_NAME = re.compile(r"layers\.(\d+)\.gate\.(\w+)")


def from_released(state: Mapping[str, Tensor], gate: type[Gate]) -> dict[str, Tensor]:
    """Return the weights of a release by the names they have here, their dtype unchanged.

    A prefix before `layers.` (model., a wrapper's module.) doesn't count. Raises ValueError listing the weights that gates of
    this kind don't have.
    """
    names = {released: name for name, released in gate.released.items()}
    return _renamed(state, _RELEASED_NAME, names, "layers.{}.gate.{}")


def to_released(state: Mapping[str, Tensor], gate: type[Gate]) -> dict[str, Tensor]:
    """Return the inverse of `from_released`, with the names that the authors' code loads."""
    return _renamed(state, _NAME, gate.released, "model.layers.{}.self_attn.attn_gate.{}.weight")


def _renamed(state: Mapping[str, Tensor], pattern: re.Pattern[str], names: Mapping[str, str], form: str) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {}
    unknown: list[str] = []
    for key, weight in state.items():
        parts = pattern.fullmatch(key)
        if parts is None or parts[2] not in names:
            unknown.append(key)
            continue
        name = form.format(int(parts[1]), names[parts[2]])
        if name in renamed:
            raise ValueError(f"it has {key} twice, under two prefixes")
        renamed[name] = weight
    if unknown:
        raise ValueError(f"it has {first_names(unknown)}; a gate of this kind has {', '.join(names)}, and nothing else")
    if not renamed:
        raise ValueError(f"it is empty; a gate of this kind has {', '.join(names)}")
    return renamed


def check_whole(state: Mapping[str, Tensor]) -> int:
    """Return the number of layers of weights by the names they have here.

    Raises ValueError unless all layers from 0 on are there, each with the same weights of the same shapes.
    """
    layers: dict[int, dict[str, list[int]]] = {}
    for key, weight in state.items():
        if (parts := _NAME.fullmatch(key)) is None:
            raise ValueError(f"it has {key}; weights of gates are named layers.0.gate.k, say")
        layers.setdefault(int(parts[1]), {})[parts[2]] = list(weight.shape)
    if not layers:
        raise ValueError("it is empty; weights of gates are named layers.0.gate.k, say")
    if gaps := sorted(set(range(max(layers))) - layers.keys()):
        raise ValueError(f"it leaves out layer {gaps[0]}; a release has gates of all layers, those of a sliding window too")
    for layer in range(max(layers) + 1):
        if layers.get(layer) != layers[max(layers)]:
            raise ValueError(f"its layer {layer} has weights {layers.get(layer)}, layer {max(layers)} {layers[max(layers)]}")
    return len(layers)


def block_size_of(config: Mapping[str, Any]) -> int:
    """Return the block size in a release's settings, or that of all known releases. Raises ValueError unless it is one."""
    block_size = config.get(BLOCK_SIZE_KEY, BLOCK_SIZE)
    if type(block_size) is not int or block_size < 1:
        raise ValueError(f"its {CONFIG} says {BLOCK_SIZE_KEY}={block_size}: must be a whole number of at least 1")
    return block_size


def check_config(config: Mapping[str, Any], gate: type[Gate], block_size: int | None = None) -> None:
    """Raise ValueError where the settings of a release are those of a gate that is not here, or of another block size."""
    for name, expected in gate.released_config.items():
        if config.get(name, expected) != expected:
            raise ValueError(f"its {CONFIG} says {name}={config[name]}; gates here are {expected}")
    released_size = block_size_of(config)
    if block_size is not None and released_size != block_size:
        raise ValueError(f"its gates are for blocks of {released_size} tokens, not {block_size}: set that block_size")


def pooling_of(gate: type[Gate]) -> str:
    """Return how gates of a kind pool queries and keys, as releases are named: Qavg_Kmaxminavg, say."""
    return "_".join(value for value in gate.released_config.values() if isinstance(value, str))


def assumed_settings(config: Mapping[str, Any], gate: type[Gate], names: Sequence[str]) -> list[str]:
    """Return, as NAME=VALUE, what must be assumed of a release because neither its settings nor its weights say it.

    names: of its file and folders; one of them may tell the pooling. Raises ValueError where it tells another one than gates
    of this kind have.
    """
    known = {*config, *gate.told_by_weights}
    missing = {name: value for name, value in gate.released_config.items() if name not in known}
    poolings = {name for name, value in missing.items() if isinstance(value, str)}
    named = [match[0] for name in names for match in _POOLING.finditer(name)] if poolings else []
    for pooling in named:
        if pooling.lower().replace("mean", "avg") != pooling_of(gate).lower():
            raise ValueError(
                f"its name says that it pools as {pooling}, gates here as {pooling_of(gate)}; where the name is wrong, put a "
                f"{CONFIG} beside it that says {', '.join(f'{name}: {missing[name]}' for name in sorted(poolings))}"
            )
    return [f"{name}={value}" for name, value in missing.items() if not (named and name in poolings)]
