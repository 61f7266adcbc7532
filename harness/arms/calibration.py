"""Finding a native knob that has no formula: bisection on the density measured in the model's own prefills."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from harness.models.bridge import Bridge
from harness.models.loading import LoadedModel
from methods.parts.base import Knob, Method

SEED = 7_000_003
"""Added to the seed of the calibration prompts, so that none is a test's."""
TOLERANCE = 0.01
"""How far from the request the measured density may lie without a word."""
CLOSE_ENOUGH = 0.002
"""How near to the request the bisection stops."""
MAX_TRIES = 20
"""Densities measured at most; each takes a prefill of every prompt."""


@dataclass(frozen=True)
class Calibration:
    """A knob's value and the density that it gave: of each global layer (`layers`, the mean over prompts), and their mean.

    tried: how many values were measured.
    """

    value: float
    density: float
    layers: list[float]
    tried: int


def bisect(measure: Callable[[float], float], knob: Knob, target: float) -> tuple[float, int]:
    """Return the value of `knob` at which `measure` comes nearest to `target` of those tried, and how many were.

    Assumes that density rises (knob.rising) or falls all along; flat steps and targets out of reach are no error: the
    nearest counts.
    """
    low, high = (math.log(end) if knob.log else end for end in (knob.low, knob.high))
    best: tuple[float, float] | None = None
    tried = 0
    while tried < MAX_TRIES:
        middle = (low + high) / 2
        value = math.exp(middle) if knob.log else middle
        density = measure(value)
        tried += 1
        if best is None or abs(density - target) < abs(best[1] - target):
            best = value, density
        if abs(density - target) <= CLOSE_ENOUGH:
            break
        if (density < target) == knob.rising:
            low = middle
        else:
            high = middle
    assert best is not None
    return best[0], tried


@torch.inference_mode()
def calibrate(
    loaded: LoadedModel,
    method: Method,
    knob: Knob,
    prompts: Sequence[Sequence[int]],
    target: float,
    *,
    on_try: Callable[[], None] | None = None,
    **kernels: Any,
) -> Calibration:
    """Set `knob` of `method` so that the density over the prompts (token ids) is `target`, and return what was reached.

    Prefills only; kernels are the keywords of Bridge. The method is left with the value that came nearest. on_try: called
    after each value that was measured.
    """
    measured: dict[float, list[float]] = {}

    def density(value: float) -> float:
        method.set_knob(knob, value)
        measured[value] = _layer_densities(loaded, method, prompts, **kernels)
        if on_try is not None:
            on_try()
        return statistics.fmean(measured[value])

    value, tried = bisect(density, knob, target)
    method.set_knob(knob, value)
    return Calibration(value, statistics.fmean(measured[value]), measured[value], tried)


def _layer_densities(loaded: LoadedModel, method: Method, prompts: Sequence[Sequence[int]], **kernels: Any) -> list[float]:
    """Prefill the prompts with the method and return the density of each global layer, the mean over prompts."""
    with Bridge(loaded, method, **kernels) as bridge:
        for prompt in prompts:
            ids = torch.tensor([list(prompt)], dtype=torch.int64, device=loaded.device)
            loaded.model(input_ids=ids, use_cache=False, logits_to_keep=1)
    return [stats["density"] for stats in bridge.stats() if stats["density"] is not None]
