"""Sparse decoding inside the bridge: a method's state for each layer, kept with the cache it was made from, and what ran.

A state follows one layer of one cache: it is made from all keys at the first step after a prompt, and each step adds the newest
key. Whatever does not look like the next step of the same batch (a prompt or a chunk of one, other rows, another cache, a cache
that was cut) makes it anew from all keys, which costs one read of them and is never wrong. Only a cache whose
rows are changed in place is not seen: no beam search.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from attention_kernels.block_index import BlockIndex
from attention_kernels.decode import resolve_decode, sparse_decode
from torch import Tensor, nn

from harness.core.errors import UserError
from harness.models.loading import LoadedModel
from methods.decode.parts.base import DecodeMethod, StepInputs
from methods.parts.base import Rope


@dataclass
class _LayerState:
    """What the method keeps of a layer, and of how many keys and rows it knows. starts: see StepInputs."""

    kept: Any
    keys: int
    rows: int
    starts: Tensor | None

    def is_before(self, k: Tensor, key_mask: Tensor | None) -> bool:
        """Whether keys k [B,Hkv,K,D] are those it knows and one more."""
        same = (self.keys, self.rows) == (k.shape[2] - 1, k.shape[0])
        return same and (self.starts is None) == (key_mask is None)


class Decoder:
    """Runs a method of decoding, layer by layer and step by step; kernel: a name of attention_kernels.decode, or "auto"."""

    def __init__(self, loaded: LoadedModel, method: DecodeMethod, *, kernel: str = "auto", record: bool = True) -> None:
        self.loaded = loaded
        self.method = method.to(loaded.device)
        self.kernel = resolve_decode(
            kernel,
            device=loaded.device,
            dtype=loaded.dtype,
            head_dim=loaded.head_dim,
            k_block=method.block_size,
            rows=loaded.heads // loaded.kv_heads,
        )
        self._record = record
        self._states: WeakKeyDictionary[Any, dict[int, _LayerState]] = WeakKeyDictionary()
        self._cache: ref[Any] | None = None
        self._starts: tuple[Tensor, Tensor] | None = None
        self._passes = 0
        self._densities: dict[int, list[Tensor]] = defaultdict(list)

    # -- which cache --------------------------------------------------------------------------------------------------

    def follow(self, decoder: nn.Module) -> Any:
        """Note the cache of every forward pass of a model's decoder; returns what `remove()` ends it."""

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            cache = kwargs.get("past_key_values")
            self._cache = None if cache is None else ref(cache)
            self._passes += 1

        return decoder.register_forward_pre_hook(before, with_kwargs=True)

    def _layers(self) -> dict[int, _LayerState]:
        """The states of the cache at hand; of a pass without one that is known, none."""
        cache = None if self._cache is None else self._cache()
        return {} if cache is None else self._states.setdefault(cache, {})

    def forget(self, layer: int) -> None:
        """Drop the state of a layer, whose cache has taken more than one token since it was made."""
        self._layers().pop(layer, None)

    # -- one step -----------------------------------------------------------------------------------------------------

    def select(
        self, layer: int, q: Tensor, k: Tensor, *, scale: float, key_mask: Tensor | None, rope: Rope | None
    ) -> tuple[BlockIndex | None, Tensor | None]:
        """The blocks of one step, None for all, and where each sequence starts (see StepInputs)."""
        method, layers = self.method, self._layers()
        if layer < method.dense_layers:
            self._note(k, None)
            return None, None
        state = layers.get(layer)
        if state is not None and state.is_before(k, key_mask):
            x = StepInputs(q=q, k=k, layer=layer, scale=scale, rope=rope, starts=state.starts)
            method.extend(state.kept, x)
            state.keys += 1
        else:
            x = StepInputs(q=q, k=k, layer=layer, scale=scale, rope=rope, starts=self._find_starts(key_mask, k))
            state = layers[layer] = _LayerState(method.start(x), k.shape[2], k.shape[0], x.starts)
        index = method.select(x, state.kept)
        self._note(k, None if index is None else index.counts[..., 0].float().mean(1) / method.blocks(x))
        return index, x.starts

    def attend(self, q: Tensor, k: Tensor, v: Tensor, index: BlockIndex, starts: Tensor | None, *, scale: float) -> Tensor:
        """Attention of the newest tokens [B,Hq,1,D] to the blocks of the index."""
        return sparse_decode(q, k, v, index, scale=scale, starts=starts, kernel=self.kernel)

    def _find_starts(self, key_mask: Tensor | None, k: Tensor) -> Tensor | None:
        """The column of each sequence's first key, from the mask of a batch padded on the left, once for all its layers.
        Waits for the device."""
        if key_mask is None:
            return None
        if self._starts is None or self._starts[0] is not key_mask:
            there = key_mask.bool()
            if not bool((there[:, 1:] >= there[:, :-1]).all() & there[:, -1].all()):
                raise UserError("decoding sparsely, only padding on the left is supported: the mask hides keys in between")
            starts = (k.shape[2] - there.sum(-1)).to(torch.int32)
            self._starts = key_mask, starts
        return self._starts[1]

    # -- what happened --------------------------------------------------------------------------------------------------

    def _note(self, k: Tensor, density: Tensor | None) -> None:
        if self._record and k.shape[2] > 1:  # the only token of a prompt is no step of decoding
            self._densities[self._passes].append(k.new_ones(k.shape[0], dtype=torch.float32) if density is None else density)

    def take_densities(self) -> list[list[float]]:
        """Kept blocks ÷ a sequence's blocks, the mean over layers and heads, of every step since the last call: one list for
        each step, a value for each sequence of the batch. Waits for the device."""
        steps = [torch.stack(layers).double().mean(0) for _, layers in sorted(self._densities.items())]
        self._densities.clear()
        return [step.tolist() for step in steps]


def mean_density(steps: list[list[float]], row: int, tokens: int) -> float | None:
    """The mean over the steps that made a sequence's tokens after the first, `tokens` of them; None where there was none."""
    mine = [step[row] for step in steps[: max(0, tokens)]]
    return statistics.fmean(mine) if mine else None
