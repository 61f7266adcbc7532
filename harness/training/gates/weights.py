"""The weights of gates: new ones for a model, and the file that they are saved in."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.core.files import write_atomically
from harness.models.layer_shapes import global_shapes
from harness.models.loading import LoadedModel
from methods.gates.attn_gate import AttnGate
from methods.gates.gate import Gate
from methods.gates.weights import gate_state

FLOAT32_BYTES = 3 * 2**20
"""With dtype "auto", gates up to this size are saved in float32, larger ones in bfloat16."""

SAVED = {"float32": torch.float32, "bfloat16": torch.bfloat16}
"""Dtypes of the file by name."""


def new_gates(loaded: LoadedModel, kind: type[Any] = AttnGate, *, block_size: int, seed: int = 0, **options: Any) -> list[Gate]:
    """Return untrained gates for every layer of a model, on its device; the same numbers for the same seed on every device."""
    generator = torch.Generator().manual_seed(seed)
    gates = []
    usual = global_shapes(loaded.layer_shapes)[0]
    shapes = dict.fromkeys(range(loaded.layers), usual) | {shape.layer: shape for shape in loaded.layer_shapes}
    for shape in shapes.values():
        gate = kind(shape.heads, shape.kv_heads, shape.head_dim, block_size=block_size, **options)
        gate.reset_parameters(generator)
        gates.append(gate.to(loaded.device))
    return gates


def saved_dtype(name: str, parameters: int) -> torch.dtype:
    """Return the dtype of the file: the one that is named, or with "auto" the one that suits so many parameters."""
    if name == "auto":
        return torch.float32 if parameters * 4 <= FLOAT32_BYTES else torch.bfloat16
    return SAVED[name]


def save_gates(
    gates: Sequence[Gate], path: Path, *, dtype: torch.dtype, recipe: dict[str, object], local: Collection[int] = ()
) -> Path:
    """Write the file whole or not at all; each item of `recipe` as JSON in its metadata. local: layers that are left out."""
    state = {
        name: weight.to("cpu", dtype).contiguous()
        for name, weight in gate_state(gates).items()
        if int(name.split(".")[1]) not in local
    }
    content = safetensors_bytes(state, {key: json.dumps(value) for key, value in recipe.items()})
    return write_atomically(path, lambda file: file.write(content))


def safetensors_bytes(state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Return tensors as a safetensors file holds them, the same bytes every time: the library writes metadata in another order
    at every call."""
    from safetensors.torch import save  # not save_file: in some releases what it writes is for its owner alone

    content = save(dict(state), metadata=dict(metadata))
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"] = dict(sorted(metadata.items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of eight bytes
    return len(text).to_bytes(8, "little") + text + content[8 + size :]
