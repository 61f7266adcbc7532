"""When memory is full: how an error says so, and giving back what the batch that failed has held."""

from __future__ import annotations

import torch


def out_of_memory(error: Exception) -> bool:
    """Whether a smaller batch may do: torch has a class for it, some libraries' errors only say it."""
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error).lower()


def let_go(error: BaseException, device: torch.device) -> None:
    """Drop the frames that an error and those it came from went through: one of them holds the cache of the batch that failed,
    and what comes next needs its memory."""
    left, known = [error], set[int]()
    while left:
        each = left.pop()
        known.add(id(each))
        each.__traceback__ = None
        left += [e for e in (each.__cause__, each.__context__) if e is not None and id(e) not in known]
    if device.type == "cuda":
        torch.cuda.empty_cache()
