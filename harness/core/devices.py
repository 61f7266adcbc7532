"""The settings `device` and `dtype`: their texts are checked without torch, which takes seconds to import and which a report
never needs; torch's own objects are made of them where a model is loaded."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from harness.core.errors import UserError

if TYPE_CHECKING:
    import torch

DTYPES = ("auto", "float32", "float16", "bfloat16", "float64")
DEVICE = re.compile(r"auto|(cpu|cuda|mps|xpu)(:\d+)?")
"""The devices of torch that run a whole model; times and kernels are made for cpu and cuda."""


def check_device(value: Any) -> str:
    """Return `value` if it reads like a device. Raises UserError otherwise; whether the machine has it torch_device says."""
    if not isinstance(value, str) or not DEVICE.fullmatch(value):
        raise UserError(f"device={value}: must be auto, cpu, cuda or cuda:0, cuda:1, …")
    return value


def check_dtype(value: Any) -> str:
    """Return `value` if it is one of DTYPES. Raises UserError otherwise."""
    if value not in DTYPES:
        raise UserError(f"dtype={value}: must be one of {', '.join(DTYPES)}")
    return str(value)


def torch_device(choice: str) -> torch.device:
    """Return the device of a checked setting; "auto" is CUDA where there is one. Raises UserError for one that isn't there."""
    import torch

    if choice == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(choice)
    if device.type not in ("cpu", "cuda") and not getattr(torch, device.type).is_available():
        raise UserError(f"device={choice}: torch finds no such device here; use device=cpu or device=auto")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device={choice}: torch finds no CUDA device here; use device=cpu or device=auto")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        names = ", ".join(f"cuda:{index}" for index in range(torch.cuda.device_count()))
        raise UserError(f"device={choice}: torch finds no such CUDA device here; it has {names}")
    return device


def torch_dtype(choice: str, device: torch.device) -> torch.dtype:
    """Return the dtype of a checked setting; "auto" is bfloat16 on CUDA, float32 elsewhere."""
    import torch

    if choice == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    dtype: torch.dtype = getattr(torch, choice)
    return dtype


def is_capturing() -> bool:
    """Return whether a CUDA graph is being captured: nothing may wait for the device meanwhile."""
    import torch

    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
