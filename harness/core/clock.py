"""Times on the device's own clock: CUDA events on a GPU, which cost no host sync to take, perf_counter elsewhere."""

from __future__ import annotations

import time

import torch

Mark = torch.cuda.Event | float
"""A moment: an event in the current stream, or seconds of perf_counter."""


def mark(device: torch.device) -> Mark:
    """Return the moment at which the device finishes all work queued so far (on the CPU: now)."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event


def elapsed_ms(start: Mark, end: Mark) -> float:
    """Return the milliseconds between two marks of one device. Call `sync` first: a CUDA event must have happened.

    Raises TypeError for a mark of the CPU and one of a GPU.
    """
    if isinstance(start, float) and isinstance(end, float):
        return (end - start) * 1e3
    if isinstance(start, float) or isinstance(end, float):
        raise TypeError("a mark of the CPU and one of a GPU have no time between them")
    return float(start.elapsed_time(end))


def sync(device: torch.device) -> None:
    """Wait until the device has finished all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
