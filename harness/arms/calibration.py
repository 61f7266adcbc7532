"""Finding a native knob that has no formula: by the density measured in the model's own prefills of the prompts to be asked.

First a few of the prompts are prefilled, and in every layer several values are selected with: that gives the curve on which the
value is guessed. Then all prompts are prefilled with that value, and it is corrected. All of it together prefills no more
prompts than PASSES times the whole set holds. No answer is generated or looked at.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch

from harness.arms.density_ladder import DensityLadder
from harness.arms.knob_search import RUNGS, RUNGS_IN_KERNEL, KnobSearch
from harness.core.errors import UserError
from harness.models.bridge import Bridge
from harness.models.chunks import Chunks, prefill
from harness.models.loading import LoadedModel
from methods.parts.base import Knob, Method

PASSES = 6
"""Passes over the whole set of prompts that a search may cost, those of the subsample counted in."""
LADDERS = 3
"""Times that the subsample is prefilled at most."""
SUBSAMPLE = 16
"""Prompts of the subsample at most; it is a quarter of the set where that is less."""

PromptSet = Mapping[str, Sequence[Sequence[int]]]
"""Prompts (token ids) by task. Tasks weigh the same, however many prompts each has."""
Prompt = tuple[str, Sequence[int]]


@dataclass(frozen=True)
class Reached:
    """The density that a value of a knob gave: of each task, the mean over its prompts; of all, the mean over tasks; and of
    each global layer."""

    value: float
    density: float
    tasks: dict[str, float]
    layers: list[float]


@dataclass(frozen=True)
class Calibration:
    """What a search found. neighbour: of a knob that is a whole number, the next one on the other side of the target.

    tried: values measured on the whole set of `prompts` prompts; prefills: prompts prefilled in `seconds`, those of the
    subsample counted in.
    """

    reached: Reached
    neighbour: Reached | None
    tried: int
    prompts: int
    prefills: int
    seconds: float


@torch.inference_mode()
def calibrate(
    loaded: LoadedModel,
    method: Method,
    knob: Knob,
    prompts: PromptSet,
    target: float,
    *,
    on_prefill: Callable[[], None] | None = None,
    sparse_kernel: str = "auto",
    dense_kernel: str = "auto",
    chunk: int | None = None,
) -> Calibration:
    """Set `knob` of `method` so that the density over the prompts is `target`, and return what was reached.

    Prefills only. The method is left with the value that came nearest. on_prefill: called after each prompt. chunk: tokens of a
    prompt that go through the model at once, None for all. Raises UserError where there is no prompt.
    """
    began = time.perf_counter()
    search = KnobSearch(knob, target, RUNGS_IN_KERNEL if method.in_kernel else RUNGS)
    whole = [(task, ids) for task, members in prompts.items() for ids in members]
    if not whole:
        raise UserError(f"no prompts to find {knob.name} of {method.name} on")
    prefills = _Prefills(loaded, on_prefill, {"sparse_kernel": sparse_kernel, "dense_kernel": dense_kernel}, chunk)
    few = subsample(prompts)
    for turn in range(LADDERS):
        values = search.ladder()
        if not values:
            break
        if turn:
            method.set_knob(knob, search.guess())
        ladder = DensityLadder(loaded, method, knob, values, sparse_kernel)
        search.note_ladder(values, prefills.ladder(few, ladder, method if turn else None))
    reached: dict[float, Reached] = {}
    while prefills.count + len(whole) <= PASSES * len(whole) and (value := search.next()) is not None:
        method.set_knob(knob, value)
        reached[value] = prefills.densities(whole, method, value)
        search.note(value, reached[value].density)
    best, neighbour = search.best(), search.neighbour()
    method.set_knob(knob, best)
    beside = None if neighbour is None else reached[neighbour]
    return Calibration(reached[best], beside, len(reached), len(whole), prefills.count, time.perf_counter() - began)


@torch.inference_mode()
def densities_of(
    loaded: LoadedModel,
    method: Method,
    prompts: PromptSet,
    *,
    on_prefill: Callable[[], None] | None = None,
    chunk: int | None = None,
    **kernels: Any,
) -> Reached:
    """Prefill the prompts with the method as it is and return its densities; the value is NaN. chunk: as in `calibrate`."""
    whole = [(task, ids) for task, members in prompts.items() for ids in members]
    return _Prefills(loaded, on_prefill, kernels, chunk).densities(whole, method, float("nan"))


def subsample(prompts: PromptSet) -> list[Prompt]:
    """Return a quarter of the prompts, SUBSAMPLE at most and one at least, spread over the tasks."""
    tasks = [task for task, members in prompts.items() if members]
    count = max(1, min(SUBSAMPLE, sum(map(len, prompts.values())) // 4))
    if count < len(tasks):
        tasks = [tasks[place * len(tasks) // count] for place in range(count)]
    longest = max(len(prompts[task]) for task in tasks)
    turns = [(task, prompts[task][turn]) for turn in range(longest) for task in tasks if turn < len(prompts[task])]
    return turns[:count]


@dataclass
class _Prefills:
    """Prefills of prompts with a method, counted."""

    loaded: LoadedModel
    on_prefill: Callable[[], None] | None
    kernels: Mapping[str, Any]
    chunk: int | None
    count: int = 0

    def ladder(self, prompts: Sequence[Prompt], ladder: DensityLadder, method: Method | None) -> list[float]:
        """Return the density of each value of a ladder, the mean over tasks, while the method attends (None: densely)."""
        by_task: dict[str, list[list[float]]] = {}
        with Bridge(self.loaded, method, observer=ladder.observe, record=False, **self.kernels) as bridge:
            for task, ids in prompts:
                ladder.begin(None if self.chunk is None or len(ids) <= self.chunk else len(ids))
                for _ in self._run([(task, ids)], bridge):
                    by_task.setdefault(task, []).append(ladder.take())
        tasks = [[fmean(densities) for densities in zip(*members, strict=True)] for members in by_task.values()]
        return [fmean(densities) for densities in zip(*tasks, strict=True)]

    def densities(self, prompts: Sequence[Prompt], method: Method, value: float) -> Reached:
        """Return the densities of the method, which has this value, over the prompts."""
        by_task: dict[str, list[dict[int, float]]] = {}
        with Bridge(self.loaded, method, **self.kernels) as bridge:
            for task, bridge_of_prompt in self._run(prompts, bridge):
                stats = bridge_of_prompt.stats()
                layers = {layer["layer"]: layer["density"] for layer in stats if layer["density"] is not None}
                by_task.setdefault(task, []).append(layers)
        tasks = {task: fmean(fmean(layers.values()) for layers in members) for task, members in by_task.items()}
        numbers = sorted({layer for members in by_task.values() for layers in members for layer in layers})
        of_layers = []
        for number in numbers:
            by_members = [[layers[number] for layers in members if number in layers] for members in by_task.values()]
            of_layers.append(fmean(fmean(densities) for densities in by_members if densities))
        return Reached(value, fmean(tasks.values()), tasks, of_layers)

    def _run(self, prompts: Sequence[Prompt], bridge: Bridge) -> Iterator[tuple[str, Bridge]]:
        """Prefill prompts one by one, each from a bridge that has seen nothing; yields the task and the bridge after it."""
        for task, ids in prompts:
            bridge.reset()
            tokens = torch.tensor([list(ids)], dtype=torch.int64, device=self.loaded.device)
            prefill(self.loaded, tokens, None if self.chunk is None else Chunks(self.chunk, bridge.chunked))
            self.count += 1
            if self.on_prefill is not None:
                self.on_prefill()
            yield task, bridge
