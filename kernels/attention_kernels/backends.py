"""Which backend of an operation runs: plain PyTorch or Triton, by name, and never another one in silence."""

from __future__ import annotations

import os
from functools import lru_cache

import torch
from torch import Tensor

from attention_kernels.optional import problem_of

KERNELS = ("reference", "triton")
TRITON_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
INTERPRETER = (
    "it would run in Triton's interpreter (TRITON_INTERPRET=1), which reads bfloat16 as integers in sort, top-k, sum and dot: "
    "use float32 or float16"
)
"""Why Triton's interpreter runs no kernel in bfloat16."""


def in_interpreter() -> bool:
    """Say whether Triton runs in its interpreter, which needs no GPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@lru_cache
def _triton_missing() -> str | None:
    """Return why Triton can't be imported, None where it can."""
    problem = problem_of("triton", "jit")
    return None if problem is None else f"it needs triton, and {problem}"


def triton_problem(device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why no Triton kernel runs on a device and type; None where one does. The interpreter holds bfloat16 as the
    integers of its bits, and sorts, multiplies and adds those: what comes out is noise."""
    if device.type != "cuda" and not in_interpreter():
        return f"it needs a CUDA device, not {device.type}"
    if dtype == torch.bfloat16 and in_interpreter() and (device.type != "cuda" or torch.cuda.is_available()):
        return INTERPRETER
    return _triton_missing()


def resolve_backend(kernel: str, x: Tensor) -> str:
    """Return the name of the kernel that will run on x: a name is checked, "auto" takes triton on CUDA (float64: reference) and
    reference elsewhere. Raises ValueError where the name is unknown or triton can't run on this device or type."""
    if kernel == "auto":
        kernel = "triton" if x.is_cuda and x.dtype != torch.float64 else "reference"
    if kernel not in KERNELS:
        raise ValueError(f"kernel={kernel} is not known; choose one of: auto, {', '.join(KERNELS)}")
    if kernel == "triton":
        check_triton(x.device, x.dtype)
    return kernel


def needs_gradient(*tensors: Tensor) -> bool:
    """Return whether autograd records what is computed of these tensors."""
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)


def check_no_gradient(kernel: str, *tensors: Tensor) -> None:
    """Raise ValueError where an input requires a gradient that a kernel would silently leave out."""
    if needs_gradient(*tensors):
        raise ValueError(
            f"kernel={kernel} has no backward pass, and an input requires a gradient; run it under torch.no_grad()"
        )


def check_triton(device: torch.device, dtype: torch.dtype) -> None:
    """Raise ValueError where no Triton kernel runs on a device and type."""
    if reason := triton_problem(device, dtype):
        raise ValueError(f"kernel=triton {reason.removeprefix('it ')}; use kernel=reference")
    if dtype not in TRITON_DTYPES:
        raise ValueError(f"kernel=triton takes float16, bfloat16 and float32, not {dtype}; use kernel=reference")
