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
from harness.models.kernel_choice import kernel_site
from harness.models.loading import LoadedModel
from methods.decode.parts.base import DecodeMethod, StepInputs
from methods.parts.rope_protocol import Rope


@dataclass
class _LayerState:
    """The method's own state of a layer, made from `keys` keys of `rows` sequences. starts: see StepInputs."""

    state: Any
    keys: int
    rows: int
    starts: Tensor | None

    def is_before(self, k: Tensor, key_mask: Tensor | None) -> bool:
        """Return whether keys k [B,Hkv,K,D] are those that the state was made from and one more."""
        next_step = (self.keys, self.rows) == (k.shape[2] - 1, k.shape[0])
        return next_step and (self.starts is None) == (key_mask is None)


class Decoder:
    """Runs a method of decoding, layer by layer and step by step; kernel: a name of attention_kernels.decode, or "auto"."""

    def __init__(self, loaded: LoadedModel, method: DecodeMethod, *, kernel: str = "auto", record: bool = True) -> None:
        self.loaded = loaded
        self.method = method.to(loaded.device)
        self._kernel_name, self._kernels = kernel, dict[tuple[int, int], str]()
        self._resolve(loaded.head_dim, loaded.heads // loaded.kv_heads)  # what can't run is said before anything does
        self._record = record
        self._states: WeakKeyDictionary[Any, dict[int, _LayerState]] = WeakKeyDictionary()
        self._cache: ref[Any] | None = None
        self._starts: tuple[Tensor, Tensor] | None = None
        self._passes = 0
        self._densities: dict[int, list[Tensor]] = defaultdict(list)

    def _resolve(self, head_dim: int, group: int) -> str:
        """Return the kernel for heads of `head_dim` elements, `group` query heads to a KV head; resolved once for each."""
        if (head_dim, group) not in self._kernels:
            site = kernel_site(self.loaded, head_dim)
            self._kernels[head_dim, group] = resolve_decode(
                self._kernel_name, **site, k_block=self.method.block_size, rows=group
            )
        return self._kernels[head_dim, group]

    def kernel_for(self, q: Tensor, k: Tensor) -> str:
        """Return the kernel of a layer with queries q [B,Hq,1,D] and keys k [B,Hkv,K,D]. Raises ValueError without one."""
        return self._resolve(q.shape[3], q.shape[1] // k.shape[1])

    # -- which cache --------------------------------------------------------------------------------------------------

    def follow(self, decoder: nn.Module) -> Any:
        """Note the cache of every forward pass of a model's decoder; returns what `remove()` ends it."""

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            cache = kwargs.get("past_key_values")
            self._cache = None if cache is None else ref(cache)
            self._passes += 1

        return decoder.register_forward_pre_hook(before, with_kwargs=True)

    def _layers(self) -> dict[int, _LayerState]:
        """Return the states of the cache of this pass, by layer; none for a pass without a cache."""
        cache = None if self._cache is None else self._cache()
        return {} if cache is None else self._states.setdefault(cache, {})

    def forget(self, layer: int) -> None:
        """Drop the state of a layer, whose cache has taken more than one token since it was made."""
        self._layers().pop(layer, None)

    # -- one step -----------------------------------------------------------------------------------------------------

    def select(
        self, layer: int, q: Tensor, k: Tensor, *, scale: float, key_mask: Tensor | None, rope: Rope | None
    ) -> tuple[BlockIndex | None, Tensor | None]:
        """Return the blocks that one step attends to, None for all, and where each sequence starts [B] (see StepInputs).

        q [B,Hq,1,D] is of the newest token, k [B,Hkv,K,D] are all keys up to it; key_mask [B,K]: False where there is no key.
        Raises UserError for a mask that hides keys between others.
        """
        method, layers = self.method, self._layers()
        if layer < method.dense_layers:
            self._note_density(k, None)
            return None, None
        state = layers.get(layer)
        if state is not None and state.is_before(k, key_mask):
            inputs = StepInputs(q=q, k=k, layer=layer, scale=scale, rope=rope, starts=state.starts)
            method.extend(state.state, inputs)
            state.keys += 1
        else:
            inputs = StepInputs(q=q, k=k, layer=layer, scale=scale, rope=rope, starts=self._find_starts(key_mask, k))
            state = layers[layer] = _LayerState(method.start(inputs), k.shape[2], k.shape[0], inputs.starts)
        index = method.select(inputs, state.state)
        if self._record:
            self._note_density(k, None if index is None else index.counts[..., 0].float().mean(1) / method.blocks(inputs))
        return index, inputs.starts

    def attend(self, q: Tensor, k: Tensor, v: Tensor, index: BlockIndex, starts: Tensor | None, *, scale: float) -> Tensor:
        """Return the attention [B,Hq,1,D] of the newest tokens to the blocks of the index."""
        return sparse_decode(q, k, v, index, scale=scale, starts=starts, kernel=self.kernel_for(q, k))

    def _find_starts(self, key_mask: Tensor | None, k: Tensor) -> Tensor | None:
        """Return the column of each sequence's first key [B], from the mask of a batch padded on the left, once for all layers.
        Waits for the device. Raises UserError for a mask that hides keys between others."""
        if key_mask is None:
            return None
        if self._starts is None or self._starts[0] is not key_mask:
            is_key = key_mask.bool()
            if not bool((is_key[:, 1:] >= is_key[:, :-1]).all() & is_key[:, -1].all()):
                raise UserError("decoding sparsely, only padding on the left is supported: the mask hides keys in between")
            starts = (k.shape[2] - is_key.sum(-1)).to(torch.int32)
            self._starts = key_mask, starts
        return self._starts[1]

    # -- what happened --------------------------------------------------------------------------------------------------

    def _note_density(self, k: Tensor, density: Tensor | None) -> None:
        """Keep the density [B] of one step of one layer, None: 1."""
        if self._record and k.shape[2] > 1:  # the only token of a prompt is no step of decoding
            self._densities[self._passes].append(k.new_ones(k.shape[0], dtype=torch.float32) if density is None else density)

    def take_densities(self) -> list[list[float]]:
        """Return the density of every step since the last call: kept ÷ all blocks of a sequence, mean over layers and heads.

        One list for each step, a value for each sequence of the batch. Waits for the device.
        """
        steps = [torch.stack(layers).double().mean(0) for _, layers in sorted(self._densities.items())]
        self._densities.clear()
        return [step.tolist() for step in steps]


def mean_density(steps: list[list[float]], row: int, tokens: int) -> float | None:
    """Return the mean density of the steps that made a sequence's tokens after the first, `tokens` of them; None where there
    was none. steps: as `Decoder.take_densities` returns them; row: of the sequence in its batch."""
    densities = [step[row] for step in steps[: max(0, tokens)]]
    return statistics.fmean(densities) if densities else None
