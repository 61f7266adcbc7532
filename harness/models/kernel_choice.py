"""The kernels that run for a loaded model where one is asked for by name, or "auto"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypedDict

import torch
from attention_kernels import sparse_attention
from attention_kernels.backends import INTERPRETER, triton_problem
from attention_kernels.dense import resolve_dense
from attention_kernels.sparse_attention import Choice

from harness.core.errors import UserError
from harness.models.loading import LoadedModel


class KernelSite(TypedDict):
    """Where a kernel is to run, as the functions of kernels/ take it: device, dtype, and elements of a head."""

    device: torch.device
    dtype: torch.dtype
    head_dim: int


def kernel_site(loaded: LoadedModel, head_dim: int | None = None) -> KernelSite:
    """Return what decides which kernels can run on the attention of a model. head_dim: of a layer, None for a global one's."""
    return KernelSite(device=loaded.device, dtype=loaded.dtype, head_dim=head_dim or loaded.head_dim)


def dense_kernel_of(loaded: LoadedModel, kernel: str, head_dim: int | None = None) -> str:
    """Return the dense kernel that runs where `kernel` (a name, or "auto") is asked for. Raises ValueError where it can't.

    head_dim: of a layer, None for a global one's.
    """
    return resolve_dense(kernel, **kernel_site(loaded, head_dim))


def check_interpreter(kernels: Mapping[str, str], dtype: torch.dtype, device: torch.device) -> None:
    """Raise UserError where a setting asks for a Triton kernel, which "auto" does on a GPU, that would run in Triton's
    interpreter in a dtype which that gets wrong. kernels: what is asked for, by setting."""
    for setting, kernel in kernels.items():
        asked = kernel == "triton" or (kernel == "auto" and device.type == "cuda")
        if asked and triton_problem(device, dtype) == INTERPRETER:
            raise UserError(f"{setting}={kernel} with dtype={str(dtype).removeprefix('torch.')}: {INTERPRETER}")


def sparse_kernel_of(loaded: LoadedModel, kernel: str, choice: Choice, *, heads: int, head_dim: int) -> str:
    """Return the kernel that runs `choice` for `heads` query heads of `head_dim` elements where `kernel` (a name, or "auto") is
    asked for.

    Raises ValueError where it can't run what was chosen.
    """
    return sparse_attention.resolve_kernel(kernel, choice, heads=heads, **kernel_site(loaded, head_dim))
