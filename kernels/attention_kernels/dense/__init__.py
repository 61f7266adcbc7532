"""Dense causal attention: the baseline of every comparison, through the best library at hand."""

from __future__ import annotations

import torch
from torch import Tensor

from attention_kernels.backends import needs_gradient
from attention_kernels.dense.libraries import (
    LIBRARIES,
    LIBRARY_GPUS,
    call_problem,
    find_library,
    gradient_problem,
    library_problem,
)
from attention_kernels.dense.reference import dense_reference
from attention_kernels.dense.sdpa import BACKENDS, sdpa_attention, sdpa_runs
from attention_kernels.dense.window import sliding_window_attention
from attention_kernels.optional import is_broken

__all__ = [
    "available_dense",
    "broken_dense",
    "dense_attention",
    "dense_attention_and_lse",
    "resolve_dense",
    "sliding_window_attention",
]

KERNELS = (*BACKENDS, *LIBRARIES, "reference")
AUTO = "fa3"
"""The library that "auto" takes where it works."""


def _runs(kernel: str, device: torch.device, dtype: torch.dtype, head_dim: int, grad: bool = False) -> str | None:
    """Return None where `kernel` can run, else the reason why not. grad: an input requires a gradient."""
    if kernel == "reference":
        return None
    if kernel in BACKENDS:
        return sdpa_runs(kernel, device, dtype, head_dim)
    majors = LIBRARY_GPUS[kernel]
    if device.type != "cuda" or torch.cuda.get_device_capability(device)[0] not in majors:
        return f"it runs on GPUs of compute capability {' and '.join(f'{m}.x' for m in majors)} only"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"it takes float16 and bfloat16, not {dtype}"
    return library_problem(kernel) or (gradient_problem(kernel) if grad else None)


def available_dense(*, device: torch.device, dtype: torch.dtype, head_dim: int, grad: bool = False) -> list[str]:
    """Return the fast dense kernels that can run here (the naive reference and torch's own choice left out). grad: those that
    have a backward pass."""
    named = [k for k in KERNELS if k not in ("sdpa", "sdpa_math", "reference")]
    runnable = [k for k in named if _runs(k, device, dtype, head_dim, grad) is None]
    return runnable or ["sdpa"]


def broken_dense(*, device: torch.device, dtype: torch.dtype, head_dim: int) -> dict[str, str]:
    """Return why libraries of dense attention that are installed can't be used, by name: half an installation, or one for
    another torch. What is not installed, or not for this device, is not among them."""
    reasons = {name: _works(name, device, dtype, head_dim) for name in LIBRARIES}
    return {name: reason for name, reason in reasons.items() if reason is not None and is_broken(reason)}


def _works(library: str, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """Return None where a library runs, else the reason why not. One that is called where none is named ("auto") is tried;
    another one compiles for seconds at its first call, which tells the same."""
    reason = _runs(library, device, dtype, head_dim)
    return call_problem(library, device, dtype, head_dim) if reason is None and library == AUTO else reason


def resolve_dense(kernel: str, *, device: torch.device, dtype: torch.dtype, head_dim: int, grad: bool = False) -> str:
    """Return the name of the kernel that will run: "auto" takes fa3 where it is installed and works, else torch's choice
    ("sdpa"); `broken_dense` says where it doesn't. grad: an input requires a gradient, which not every package of fa3 has.

    Raises ValueError where the name is unknown, or says why the kernel can't run.
    """
    if kernel == "auto":
        works = _works(AUTO, device, dtype, head_dim) is None and not (grad and gradient_problem(AUTO))
        return AUTO if works else "sdpa"
    if kernel not in KERNELS:
        raise ValueError(f"dense kernel {kernel} is not known; choose one of: auto, {', '.join(KERNELS)}")
    reason = _runs(kernel, device, dtype, head_dim, grad)
    if reason is not None:
        raise ValueError(f"dense kernel {kernel} can't run here: {reason}")
    return kernel


def dense_attention(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None, kernel: str = "auto", key_mask: Tensor | None = None
) -> Tensor:
    """Compute causal attention of q [B, Hq, Q, D] to k, v [B, Hkv, K, D], the diagonal at the bottom right. Returns [B, Hq, Q,
    D].

    `key_mask` bool [B, K]: False where there is no key (padding); only for the sdpa kernels torch has a mask for, and the
    reference. Raises ValueError where the kernel can't run.
    """
    grad = needs_gradient(q, k, v)
    name = resolve_dense(kernel, device=q.device, dtype=q.dtype, head_dim=q.shape[-1], grad=grad)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if name == "reference":
        return dense_reference(q, k, v, scale=scale, key_mask=key_mask)
    if name in BACKENDS:
        return sdpa_attention(q, k, v, scale=scale, backend=name, key_mask=key_mask)
    if key_mask is not None:
        raise ValueError(f"dense kernel {name} has no key mask; use kernel=sdpa for padded batches")
    return _by_library(name, q, k, v, scale, with_lse=False)[0]


def dense_attention_and_lse(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None, kernel: str = "auto"
) -> tuple[Tensor, Tensor | None]:
    """Compute `dense_attention`; return its output [B, Hq, Q, D] and the natural log-sum-exp of each query, float32 [B, Hq, Q].

    The second is None where the kernel that runs does not return one: only libraries do. Raises as `dense_attention`.
    """
    grad = needs_gradient(q, k, v)
    name = resolve_dense(kernel, device=q.device, dtype=q.dtype, head_dim=q.shape[-1], grad=grad)
    if name not in LIBRARIES:
        return dense_attention(q, k, v, scale=scale, kernel=name), None
    return _by_library(name, q, k, v, q.shape[-1] ** -0.5 if scale is None else scale, with_lse=True)


def _by_library(name: str, q: Tensor, k: Tensor, v: Tensor, scale: float, *, with_lse: bool) -> tuple[Tensor, Tensor | None]:
    """Return a library's output [B, Hq, Q, D] of q, k, v [B, H, N, D], and its log-sum-exp [B, Hq, Q] where asked for."""
    library = find_library(name)
    assert library is not None
    out, lse = library(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), scale, with_lse=with_lse)
    return out.transpose(1, 2), lse
