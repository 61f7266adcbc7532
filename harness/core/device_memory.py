"""When memory is full, or a device is lost: how an error says so, and giving back what the batch that failed still holds."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import torch

MEMORY = Path("/proc/meminfo")
"""Where Linux says how much memory programs can still have."""


NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "cublas_status_alloc_failed", "cannot allocate")
"""What errors of full memory say that have no class of their own: those of CUDA's libraries, and of torch on a CPU."""
OF_DEVICE = ("cuda error", "triton error [cuda]", "cublas_status_", "cudnn_status_", "hip error")
"""What errors of a device say, or of its libraries."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether a smaller batch may do: torch and Python have a class for it, the errors of some libraries only say it."""
    says = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in says for words in NO_MEMORY)


def is_device_error(error: BaseException) -> bool:
    """Return whether an error is the device's own, other than full memory: an access out of bounds, a failed launch."""
    says = str(error).lower()
    told = isinstance(error, torch.AcceleratorError) or any(words in says for words in OF_DEVICE)
    return told and not is_out_of_memory(error)


def is_usable(device: torch.device) -> bool:
    """Return whether the device still takes work of this process. After most errors of a GPU it takes none: every later call
    ends in the same error, whatever it is."""
    if device.type != "cuda":
        return True
    try:
        torch.zeros(1, device=device).add_(1)
        torch.cuda.synchronize(device)
    except RuntimeError as error:
        return is_out_of_memory(error)  # full, and alive
    return True


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
        with suppress(RuntimeError):  # of a device that is lost
            torch.cuda.empty_cache()
