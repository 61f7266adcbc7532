"""Repeated timing of several functions under equal conditions.

The functions take turns, so that a clock that drifts drifts for all of them. Before every call on a GPU a buffer larger
than the L2 cache is written: the inputs come from memory, as they do in a model, and the host gets a head start in
queueing the launches. Time is taken on the device (CUDA events), on a CPU with perf_counter.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from harness.clock import elapsed_ms, mark, sync

FLUSH_BYTES = 256 << 20
"""Written before every call on a GPU; the L2 caches of Hopper and Blackwell hold 50 to 126 MB."""

WARM_UP = 2
"""Calls of each function on a GPU before the clock runs, once it has compiled."""


@dataclass(frozen=True)
class Times:
    """Milliseconds of repeated calls: the median, and the 10th and 90th percentile as the spread."""

    median: float
    low: float
    high: float
    repeats: int

    @staticmethod
    def of(samples: list[float]) -> Times:
        """From the samples of one function, at least one."""
        ordered = sorted(samples)
        last = len(ordered) - 1
        return Times(median(ordered), ordered[round(0.1 * last)], ordered[round(0.9 * last)], len(ordered))


def take_turns(
    functions: Mapping[str, Callable[[], Any]], device: torch.device, *, repeats: int, max_seconds: float
) -> dict[str, Times]:
    """Time every function `repeats` times, or as often as fits into max_seconds (warm-up included), at least once."""
    stop = time.perf_counter() + max_seconds
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device) if device.type == "cuda" else None
    if flush is not None:  # the first calls on a CPU are no slower than the next, and there they are dear
        for _ in range(WARM_UP):
            for function in functions.values():
                function()
    samples: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(repeats):
        began = time.perf_counter()
        marks = {}
        for name, function in functions.items():
            if flush is not None:
                flush.zero_()
            start = mark(device)
            function()
            marks[name] = start, mark(device)
        sync(device)
        for name, (start, end) in marks.items():
            samples[name].append(elapsed_ms(start, end))
        now = time.perf_counter()
        if turn + 1 < repeats and now + (now - began) > stop:  # another turn would not fit
            break
    return {name: Times.of(values) for name, values in samples.items()}


def extra_mib(function: Callable[[], Any], device: torch.device) -> float | None:
    """MiB of GPU memory that one call needs beyond what is allocated before it; None on a CPU, which keeps no count."""
    if device.type != "cuda":
        function()
        return None
    sync(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    function()
    sync(device)
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20
