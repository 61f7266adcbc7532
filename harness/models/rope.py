"""The rotary embedding of one layer of a transformers model, as methods see it (methods.parts.rope_protocol.Rope)."""

from __future__ import annotations

import copy
import inspect
import sys
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from harness.core.errors import UserError
from harness.models.key_frequencies import KeyFrequencies
from harness.models.rope_lengths import passes, switch_lengths, switches
from methods.parts.rope import rope_apply

__all__ = ["LayerRopes", "ModelRope", "switch_lengths"]

_HIDDEN_NOPE = {"afmoe", "cohere2", "cohere2_moe", "exaone4", "exaone4_5", "exaone_moe", "granite_swa", "granitemoe_swa"}
"""Models that leave RoPE out of some layers in a way that the layer itself does not show."""

TABLE_STEP = 4096
"""Tables are made for a multiple of so many positions: prompts of nearly the same length find theirs made."""


@dataclass(frozen=True)
class _Table:
    """cos, sin [P,R/2], and what they were made from: the frequencies; the pass that left those and the attention scaling."""

    frequencies: Tensor
    origin: tuple[int, float]
    cos: Tensor
    sin: Tensor


_tables: WeakKeyDictionary[nn.Module, dict[tuple, _Table]] = WeakKeyDictionary()
"""By rotary module: a table of 128k positions takes 64 MiB, so layers share it."""


class ModelRope:
    """Cos and sin of the model's own frequencies, for the rotate-half RoPE that most decoders have.

    Reads the frequencies from the rotary module's buffers, as the last forward pass left them: calling the module would
    make those of the dynamic types recompute them for the positions of the call. A layer without RoPE (use_rope False)
    has cos 1 and sin 0. Raises UserError where the model's RoPE is of another kind: undoing it would be wrong.
    """

    def __init__(self, model: Any, layer_idx: int) -> None:
        config = model.config.get_text_config(decoder=True)
        kind = type(model).__name__
        rotary = getattr(model.get_decoder(), "rotary_emb", None)
        if config.model_type in _HIDDEN_NOPE:
            raise UserError(f"{kind} leaves RoPE out of some layers: methods that undo RoPE can't run on it")
        if rotary is None:
            raise UserError(f"{kind} has no rotary_emb: methods that undo RoPE can't run on it")
        layer_types = getattr(config, "layer_types", None)
        layer_type = layer_types[layer_idx] if layer_types else None
        self._rotary = rotary
        self._layer_type = layer_type if hasattr(rotary, f"{layer_type}_inv_freq") else None
        # the rotary module's names of both, which may be one for each type of layers; made once, as every call asks for them
        prefix = "" if self._layer_type is None else f"{self._layer_type}_"
        self._inv_freq, self._attention_scaling = f"{prefix}inv_freq", f"{prefix}attention_scaling"
        if not hasattr(rotary, self._inv_freq):
            raise UserError(f"the rotary_emb of {kind} has no {self._inv_freq}: this kind is not supported")
        attention = _attention(model, layer_idx)
        self._dtype: torch.dtype = model.get_input_embeddings().weight.dtype
        self._rotates = bool(getattr(attention, "use_rope", True))
        _check(self, attention, kind)

    def cos_sin(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return cos, sin [P,R] float32 of positions [P] int64, rounded to the model's dtype as transformers rounds them."""
        return self._cos_sin(self._rotary, positions)

    def table(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return cos, sin [length,R/2] float32 of positions 0 to length - 1: one half of what cos_sin gives. Read only."""
        tables = _tables.setdefault(self._rotary, {})
        key = (self._layer_type, self._rotates, self._dtype, device)
        frequencies, scaling = getattr(self._rotary, self._inv_freq), self._scaling(self._rotary)
        table = tables.get(key)
        # where they depend on the length, other frequencies may be in the same tensor after every pass
        origin = (passes(self._rotary), scaling)
        if table is None or table.frequencies is not frequencies or table.origin != origin or len(table.cos) < length:
            with torch.inference_mode(False), torch.no_grad():  # training may use what an evaluation made
                positions = torch.arange(-(-length // TABLE_STEP) * TABLE_STEP, device=device)
                table = _Table(frequencies, origin, *self._waves(self._rotary, positions))
            tables[key] = table
        if len(table.cos) == length:
            return table.cos, table.sin
        return table.cos[:length], table.sin[:length]

    def _cos_sin(self, rotary: nn.Module, positions: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = self._waves(rotary, positions)
        return torch.cat((cos, cos), dim=-1), torch.cat((sin, sin), dim=-1)

    def _waves(self, rotary: nn.Module, positions: Tensor) -> tuple[Tensor, Tensor]:
        frequencies = getattr(rotary, self._inv_freq).to(device=positions.device, dtype=torch.float32)
        angles = positions[:, None].float() * (frequencies if self._rotates else torch.zeros_like(frequencies))
        scaling = self._scaling(rotary)
        return tuple((wave * scaling).to(self._dtype).float() for wave in (angles.cos(), angles.sin()))  # type: ignore[return-value]

    def _scaling(self, rotary: nn.Module) -> float:
        return float(getattr(rotary, self._attention_scaling, 1.0)) if self._rotates else 1.0


def rope_tables(model: Any) -> list[Tensor]:
    """Return the tables that `ModelRope.table` has made for a model and would give again.

    A longer prompt replaces them: what goes on reading them by their address, as a CUDA graph does, has to hold them.
    """
    rotary = getattr(model.get_decoder(), "rotary_emb", None)
    tables = {} if rotary is None else _tables.get(rotary, {})
    return [wave for table in tables.values() for wave in (table.cos, table.sin)]


class LayerRopes:
    """The RoPE of each layer of a model, made and checked when it is first asked for. Raises UserError as `ModelRope` does, and
    where keys in the cache were turned by other frequencies than those that a layer has now."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._ropes: dict[int, ModelRope] = {}
        self._key_frequencies = KeyFrequencies(model)

    def follow(self) -> Any:
        """Note the lengths of every forward pass from now on; returns what `remove()` ends it, None where there's no need."""
        return self._key_frequencies.follow()

    def __getitem__(self, layer: int) -> ModelRope:
        self._key_frequencies.check()
        if layer not in self._ropes:
            self._ropes[layer] = ModelRope(self._model, layer)
        return self._ropes[layer]


def _attention(model: Any, layer_idx: int) -> nn.Module:
    for module in model.get_decoder().modules():
        projects = hasattr(module, "q_proj") or hasattr(module, "qkv_proj")
        if projects and getattr(module, "layer_idx", None) == layer_idx:
            return module
    raise UserError(f"{type(model).__name__} has no attention layer {layer_idx} with a q_proj or qkv_proj")


def _check(rope: ModelRope, attention: nn.Module, kind: str) -> None:
    """Raise UserError where `rope` differs from the model's own RoPE on a few numbers; on copies, so that no state of the model
    changes."""
    if not rope._rotates:
        return
    apply = getattr(sys.modules[type(attention).__module__], "apply_rotary_pos_emb", None)
    if apply is None:
        raise UserError(f"the module of {kind} has no apply_rotary_pos_emb: its kind of RoPE is not supported")
    rotary = copy.deepcopy(rope._rotary).to("cpu")
    switch = switches(rotary).get(rope._layer_type) if hasattr(rotary, "rope_type") else None
    last_positions = [7] if switch is None else [7, switch.length + 7]
    if not all(_agrees(rope, rotary, apply, torch.tensor([0, 1, last])) for last in last_positions):
        raise UserError(f"the RoPE of {kind} is not the rotate-half kind: methods that undo RoPE can't run on it")


def _agrees(rope: ModelRope, rotary: Any, apply: Any, positions: Tensor) -> bool:
    """Return whether `rope` on a copy of its rotary module is the model's own RoPE at a few positions."""
    extra = () if rope._layer_type is None else (rope._layer_type,)
    reference = rotary(torch.zeros(1, dtype=rope._dtype), positions[None], *extra)
    cos_sin = rope._cos_sin(rotary, positions)
    if not isinstance(reference, tuple) or not all(
        torch.equal(expected.float(), wave[None]) for expected, wave in zip(reference, cos_sin, strict=True)
    ):
        return False
    # the same angles; now which elements turn together (only the rotary ones: some models split the rest off)
    x = torch.randn(1, 1, len(positions), cos_sin[0].shape[-1], generator=torch.Generator().manual_seed(0))
    names = list(inspect.signature(apply).parameters)
    alone = names[1:2] == ["cos"]  # some models turn queries and keys one by one
    try:
        rotated = apply(*([x] if alone else [x, x]), *(wave.float() for wave in reference))
    except (TypeError, RuntimeError, ValueError):  # arguments of another kind
        return False
    return torch.allclose(rotated if alone else rotated[0], rope_apply(x, *cos_sin), atol=1e-5)
