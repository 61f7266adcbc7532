"""Sizes of what a Triton program works on: powers of two, and how deep a loop may prefetch, which is what fits into shared
memory. That is asked of the device and never guessed by name."""

from __future__ import annotations

from functools import lru_cache

import torch


def power_of_two(n: int) -> int:
    """Return the smallest power of two that is at least n, for n from 1 on: what `triton.next_power_of_2` does. That one can be
    called in kernels too, and costs the host as much as ten arguments of a launch each time."""
    return 1 << (n - 1).bit_length()


@lru_cache
def shared_bytes(device: torch.device) -> int:
    """Return the bytes of shared memory that one program may take; 227 KiB, a Hopper's, where there is no GPU to ask."""
    if device.type != "cuda":
        return 227 << 10
    from triton.runtime import driver  # imported late: needs triton

    index = torch.cuda.current_device() if device.index is None else device.index

    return int(driver.active.utils.get_device_properties(index)["max_shared_mem"])


def prefetch_depth(rows: int, loaded: int, dim: int, itemsize: int, room: int, most: int = 3) -> int:
    """Return the stages of a loop that keeps `rows` query rows and loads `loaded` key or value rows a turn, each `dim`
    elements.

    One to `most`. Raises ValueError where even one stage doesn't fit into `room` bytes, saying what would.
    """
    fixed, stage_bytes = rows * dim * itemsize, loaded * dim * itemsize
    depth = min(most, (room - fixed) // stage_bytes) if room > fixed else 0
    if depth < 1:
        raise ValueError(
            f"head dim {dim} with {itemsize}-byte elements needs {(fixed + stage_bytes) >> 10} KiB of shared memory for these "
            f"blocks, and the GPU has {room >> 10}; use smaller blocks, float16 or bfloat16"
        )
    return depth
