"""A release of gates in its authors' layout, with weights drawn at random."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

BLOCK = 16
GATE = "model.layers.{}.self_attn.attn_gate.{}.weight"


def write(folder: Path, shapes: dict[str, tuple[int, ...]], **config: object) -> dict[str, Tensor]:
    """A release of random gates for two layers, in bfloat16 as they are."""
    generator = torch.Generator().manual_seed(7)
    state = {
        GATE.format(layer, name): (torch.randn(shape, generator=generator) + name.endswith("norm")).bfloat16()
        for layer in (0, 1)
        for name, shape in shapes.items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state, folder / "attn_gate_weights.pth")
    (folder / "config.json").write_text(json.dumps({"model_type": "x", "seerattn_gate_block_size": BLOCK, **config}))
    return state
