"""Repeated timing of several functions under equal conditions.

The functions take turns, there and back, so that a clock that drifts drifts for all of them and none always follows the one
that heats the card most. Before every call on a GPU a buffer larger than the L2 cache is written: the inputs come from
memory, as they do in a model. Then the GPU waits for `HEAD_START`, so that the host has queued the launches when they begin, as
it has in a model whose GPU is busy: what is timed is the device, not Python (a whole prefill is timed without). Time is
taken on the device (CUDA events), on a CPU with perf_counter.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

import torch

from harness.core.clock import elapsed_ms, mark, sync

FLUSH_BYTES = 256 << 20
"""Written before every call on a GPU; the L2 caches of Hopper and Blackwell hold 50 to 126 MB."""

HEAD_START = 8_000_000
"""Clock cycles that the GPU waits before a call, about five milliseconds: Python needs up to three to queue a selection of many
small launches and a kernel of a library (with one millisecond, short calls of such kernels were timed too long)."""

WARM_UP = 2
"""Calls of each function on a GPU before the clock runs, once it has compiled."""


@dataclass(frozen=True)
class Times:
    """Milliseconds of repeated calls: the median, and the 10th and 90th percentile as the spread. samples: those of each round,
    in which the functions that are timed together take turns."""

    median: float
    low: float
    high: float
    repeats: int
    samples: tuple[float, ...] = field(default=(), compare=False)

    @staticmethod
    def of(samples: list[float]) -> Times:
        """Summarise the samples of one function, at least one."""
        ordered = sorted(samples)
        last = len(ordered) - 1
        return Times(median(ordered), ordered[round(0.1 * last)], ordered[round(0.9 * last)], len(ordered), tuple(samples))

    def beside(self, base: Times) -> Times:
        """Return these times with the median that goes with `base`, which was timed in the same rounds: base's median × the
        median of the rounds' ratios.

        A clock that drifts, or other work on the machine, slows all calls of a round, and so leaves the ratio alone; of two
        medians each may be of a round of its own. So speed-ups made of these numbers are those of the rounds. Spread and
        samples stay. Raises ValueError for times of other rounds.
        """
        if len(self.samples) != len(base.samples) or not base.samples:
            raise ValueError(f"{len(self.samples)} and {len(base.samples)} rounds: only times of the same rounds go together")
        ratios = [own / other for own, other in zip(self.samples, base.samples, strict=True) if other > 0]
        return replace(self, median=base.median * median(ratios)) if ratios else self


def nothing_timed(times: Times) -> Times:
    """Return the times of nothing at all, in the rounds of others."""
    return Times(0.0, 0.0, 0.0, times.repeats, (0.0,) * len(times.samples))


def take_turns(
    functions: Mapping[str, Callable[[], Any]],
    device: torch.device,
    *,
    repeats: int,
    max_seconds: float,
    at_least: int = 1,
    warm: bool = False,
    head_start: bool = True,
    before: Mapping[str, Callable[[], Any]] | None = None,
) -> dict[str, Times]:
    """Time every function `repeats` times, or as often as fits into max_seconds (warm-up included), but `at_least` times
    (or `repeats` times, where that is less), however long that takes.

    warm: each function has been called just before, and needs no call without the clock. head_start: let the host queue a
    call's launches before the GPU begins; without, its launches are part of the time. before: by name, what runs before each
    call of a function, without the clock.
    """
    prepare = before or {}
    stop = time.perf_counter() + max_seconds
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device) if device.type == "cuda" else None
    if flush is not None and not warm:  # the first calls on a CPU are no slower than the next, and there they are dear
        for _ in range(WARM_UP):
            began = time.perf_counter()
            for name, function in functions.items():
                if name in prepare:
                    prepare[name]()
                function()
            sync(device)
            if 2 * time.perf_counter() - began > stop:  # long calls are warm after one, and the time is for the clock
                break
    samples: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(repeats):
        began = time.perf_counter()
        marks = {}
        for name, function in list(functions.items())[:: -1 if turn % 2 else 1]:
            if name in prepare:
                prepare[name]()
            if flush is not None:
                flush.zero_()
                if head_start:
                    torch.cuda._sleep(HEAD_START)
            start = mark(device)
            function()
            marks[name] = start, mark(device)
        sync(device)
        for name, (start, end) in marks.items():
            samples[name].append(elapsed_ms(start, end))
        now = time.perf_counter()
        if turn + 1 >= at_least and now + (now - began) > stop:  # another turn would not fit
            break
    return {name: Times.of(values) for name, values in samples.items()}


def extra_mib(function: Callable[[], Any], device: torch.device) -> float | None:
    """Call a function and return the MiB of GPU memory that it needs beyond what is allocated before; None on a CPU, which
    keeps no count."""
    if device.type != "cuda":
        function()
        return None
    sync(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    function()
    sync(device)
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


def peak_mib(function: Callable[[], Any], device: torch.device) -> float | None:
    """Return the most MiB of GPU memory allocated during one call, what was allocated before it included; None on a CPU, where
    nothing is called."""
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    function()
    sync(device)
    return torch.cuda.max_memory_allocated(device) / 2**20
