"""Which backend of an operation runs: plain PyTorch or Triton, by name, and never another one in silence."""

from __future__ import annotations

import os

import torch
from torch import Tensor

KERNELS = ("reference", "triton")
TRITON_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def in_interpreter() -> bool:
    """Say whether Triton runs in its interpreter, which needs no GPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def resolve_backend(kernel: str, x: Tensor) -> str:
    """Return the name of the kernel that will run on x: a name is checked, "auto" takes triton on CUDA (float64: reference) and
    reference elsewhere. Raises ValueError where the name is unknown or triton can't run on this device or type."""
    if kernel == "auto":
        return "triton" if x.is_cuda and x.dtype != torch.float64 else "reference"
    if kernel not in KERNELS:
        raise ValueError(f"kernel={kernel} is not known; choose one of: auto, {', '.join(KERNELS)}")
    if kernel == "triton":
        if not x.is_cuda and not in_interpreter():
            raise ValueError(f"kernel=triton needs a CUDA device, not {x.device.type}; use kernel=reference")
        if x.dtype not in TRITON_DTYPES:
            raise ValueError(f"kernel=triton takes float16, bfloat16 and float32, not {x.dtype}; use kernel=reference")
    return kernel
