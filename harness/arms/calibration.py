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
ENOUGH = 0.002
"""How near is near enough to stop."""
MOST = 20
"""Densities measured at most; each takes a prefill of every prompt."""


@dataclass(frozen=True)
class Found:
    """A knob's value and what it gave: density as the mean over prompts, and over prompts in each layer."""

    value: float
    density: float
    layers: list[float]
    tried: int


def bisect(measure: Callable[[float], float], knob: Knob, target: float) -> tuple[float, int]:
    """The value of `knob` at which `measure` comes nearest to `target` of those tried, and how many were.

    Assumes that density rises (knob.rising) or falls all along; flat steps and targets out of reach are no error: the
    nearest counts.
    """
    low, high = (math.log(v) if knob.log else v for v in (knob.low, knob.high))
    best: tuple[float, float] | None = None
    tried = 0
    while tried < MOST:
        middle = (low + high) / 2
        value = math.exp(middle) if knob.log else middle
        density = measure(value)
        tried += 1
        if best is None or abs(density - target) < abs(best[1] - target):
            best = value, density
        if abs(density - target) <= ENOUGH:
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
) -> Found:
    """Set `knob` of `method` so that the density over the prompts (token ids) is `target`, and say what was reached.

    Prefills only; kernels are the keywords of Bridge. The method is left with the value found.
    """

    def layers(value: float) -> list[float]:
        method.set_knob(knob, value)
        with Bridge(loaded, method, **kernels) as bridge:
            for prompt in prompts:
                ids = torch.tensor([list(prompt)], dtype=torch.int64, device=loaded.device)
                loaded.model(input_ids=ids, use_cache=False, logits_to_keep=1)
            found = [stats["density"] for stats in bridge.stats() if stats["density"] is not None]
        if on_try is not None:
            on_try()
        return found

    value, tried = bisect(lambda value: statistics.fmean(layers(value)), knob, target)
    reached = layers(value)
    return Found(value, statistics.fmean(reached), reached, tried)
