"""The densities that several values of a knob would give in the layers of the same prefills: what a search looks at first."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from statistics import fmean

import torch
from torch import Tensor

from harness.models.loading import LoadedModel
from harness.models.observe import layer_inputs, what_runs
from methods.parts.base import Knob, Method


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
        self._layers: list[Tensor] = []

    def observe(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> None:
        """Note what each value would keep of this layer."""
        x, densities = layer_inputs(self.loaded, self._methods[0], layer, q, k, scale), []
        for method in self._methods:
            choice = method.select(x)
            if choice is None:
                densities.append(torch.ones((), device=q.device))
                continue
            index = what_runs(self.loaded, q, k, v, choice, scale=scale, kernel=self.sparse_kernel)
            densities.append(index.density().mean().float())
        self._layers.append(torch.stack(densities))

    def take(self) -> list[float]:
        """Return the density of each value since the last call, the mean over layers. Waits for the device."""
        layers, self._layers = [layer.tolist() for layer in self._layers], []
        return [fmean(densities) for densities in zip(*layers, strict=True)]
