"""Pooled vectors on their way to a score: a linear map per head, then RoPE at each block's position."""

from __future__ import annotations

from torch import Tensor

from attention_kernels.backends import resolve_backend
from attention_kernels.project.reference import project_reference
from attention_kernels.rope import check_tables

MOST_DIM = 256


def project(
    x: Tensor, weight: Tensor | None, *, cos: Tensor | None = None, sin: Tensor | None = None, kernel: str = "auto"
) -> Tensor:
    """Map and rotate x [B, Hx, M, I] -> rotate(x @ weight) [B, H, M, D] in float32 (float64 stays).

    weight [H, I, D], H a multiple of Hx: head h maps x's head h // (H // Hx); None maps nothing, and H is Hx, D is I.
    cos, sin: float32 [M, R/2], tables of the RoPE that is applied (`rope.py`); None applies none. kernel: "reference"
    is plain PyTorch and differentiable; "triton" is one launch and is not; "auto" takes triton on CUDA, but for float64.
    """
    if x.ndim != 4:
        raise ValueError(f"x has shape {tuple(x.shape)}: expected [B,Hx,M,I]")
    if weight is not None and (weight.ndim != 3 or weight.shape[0] % x.shape[1] or weight.shape[1] != x.shape[3]):
        raise ValueError(
            f"weight {tuple(weight.shape)} for x {tuple(x.shape)}: expected [H,{x.shape[3]},D], H a multiple of {x.shape[1]}"
        )
    dim = x.shape[3] if weight is None else weight.shape[2]
    check_tables(cos, sin, x.shape[2], dim)
    if resolve_backend(kernel, x) == "triton":
        if dim > MOST_DIM:
            raise ValueError(f"kernel=triton projects to at most {MOST_DIM} elements, not {dim}; use kernel=reference")
        if weight is None and cos is None:
            return x.float()  # x itself where it is float32: no launch
        from attention_kernels.project.triton_kernel import project_triton  # imported late: needs triton

        return project_triton(x, weight, cos, sin)
    return project_reference(x, weight, cos, sin)
