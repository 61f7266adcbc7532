"""When memory is full: how an error says so, and giving back what the batch that failed still holds."""

from __future__ import annotations

import torch


def is_out_of_memory(error: Exception) -> bool:
    """Return whether a smaller batch may do: torch has a class for it, the errors of some libraries only say it."""
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error).lower()


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
