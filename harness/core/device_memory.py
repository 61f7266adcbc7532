"""When memory is full: how an error says so, and giving back what the batch that failed still holds."""

from __future__ import annotations

from pathlib import Path

import torch

MEMORY = Path("/proc/meminfo")
"""Where Linux says how much memory programs can still have."""


def is_out_of_memory(error: Exception) -> bool:
    """Return whether a smaller batch may do: torch has a class for it, the errors of some libraries only say it."""
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error).lower()


def available_bytes(device: torch.device) -> int | None:
    """Return the bytes that tensors can still take on a device; None where the system does not say."""
    if device.type == "cuda":
        held_unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by torch's allocator
        return torch.cuda.mem_get_info(device)[0] + held_unused
    if device.type != "cpu" or not MEMORY.exists():
        return None
    lines = (line.split() for line in MEMORY.read_text(encoding="ascii").splitlines())
    return next((1024 * int(words[1]) for words in lines if words[0] == "MemAvailable:"), None)


def release_frames(error: BaseException, device: torch.device) -> None:
    """Drop the frames that an error, and those that it came from, went through, and empty the device's cache.

    One of the frames holds the KV cache of the batch that failed, and what comes next needs its memory.
    """
    errors, seen = [error], set[int]()
    while errors:
        current = errors.pop()
        seen.add(id(current))
        current.__traceback__ = None
        errors += [e for e in (current.__cause__, current.__context__) if e is not None and id(e) not in seen]
    if device.type == "cuda":
        torch.cuda.empty_cache()
