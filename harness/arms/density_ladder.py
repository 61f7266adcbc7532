"""The densities that several values of a knob would give in the layers of the same prefills: what a search looks at first."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from statistics import fmean

import torch
from torch import Tensor

from harness.models.layer_stats import ChunkDensity, prompt_densities
from harness.models.loading import LoadedModel
from harness.models.observe import layer_inputs, what_runs
from methods.parts.base import Knob, Method
from methods.parts.prompt_chunks import ChunkedPrompt


class DensityLadder:
    """An observer of the Bridge that selects in every layer with each of some values of a knob, and notes the density.

    Each value has a copy of the method, so that what one keeps from layer to layer is its own. sparse_kernel: runs only where a
    method leaves the choice to it.
    """

    def __init__(
        self, loaded: LoadedModel, method: Method, knob: Knob, values: Sequence[float], sparse_kernel: str = "auto"
    ) -> None:
        self.loaded, self.sparse_kernel = loaded, sparse_kernel
        self._methods = [copy.copy(method) for _ in values]
        for of_value, value in zip(self._methods, values, strict=True):
            of_value.set_knob(knob, value)
        self._layers: dict[int, list[list[ChunkDensity]]] = {}
        self._chunked_tokens: int | None = None
        self._prompts: dict[int, ChunkedPrompt] = {}

    def begin(self, chunked_tokens: int | None) -> None:
        """Begin with another prompt: of so many tokens, where it comes in chunks, or None."""
        self._chunked_tokens, self._prompts = chunked_tokens, {}

    def observe(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> None:
        """Note what each value would keep of this layer."""
        prompt = None
        if self._chunked_tokens is not None:
            prompt = self._prompts.setdefault(layer, ChunkedPrompt(self._chunked_tokens))
        x = layer_inputs(self.loaded, self._methods[0], layer, q, k, scale, prompt)
        of_values = self._layers.setdefault(layer, [[] for _ in self._methods])
        for method, chunks in zip(self._methods, of_values, strict=True):
            choice = method.select(x)
            index = None
            if choice is not None:
                index = what_runs(self.loaded, q, k, v, choice, scale=scale, kernel=self.sparse_kernel)
            chunks.append(ChunkDensity.of(index, q.shape[2], k.shape[2]))

    def take(self) -> list[float]:
        """Return the density of each value in the prompt since the last call, the mean over layers. Waits for the device."""
        device = self.loaded.device
        layers = []
        for of_values in self._layers.values():
            densities = [torch.as_tensor(prompt_densities(chunks)[0], device=device).float() for chunks in of_values]
            layers.append(torch.stack(densities).tolist())
        self._layers = {}
        return [fmean(of_layers) for of_layers in zip(*layers, strict=True)]
