"""The table of block-sparse kernels: what each is called, where it runs, how it is run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from attention_kernels.backends import TRITON_DTYPES, triton_problem
from attention_kernels.block_index import BlockIndex
from attention_kernels.block_sparse.backward.reference import Recomputed
from attention_kernels.block_sparse.flash4 import block_sparse_flash4, flash4_reason
from attention_kernels.block_sparse.flash4_gradient import block_sparse_flash4_with_gradient, flash4_gradient_reason
from attention_kernels.block_sparse.flex import block_sparse_flex, flex_reason
from attention_kernels.block_sparse.hopper import block_sparse_hopper, hopper_reason
from attention_kernels.block_sparse.reference import block_sparse_reference
from attention_kernels.block_sparse.sdpa import block_sparse_sdpa
from attention_kernels.full_rows import full_row_attention

TRITON_BLOCKS = (16, 32, 64, 128)
TRITON_DIMS = (16, 32, 64, 96, 128, 256)
MERGED = 128
"""Tokens of a block after merging: the size at which FlashAttention-4 reaches its full rate."""


ON_GPUS = ("fa3", "triton", "sdpa")
"""What computes full rows beside a kernel for GPUs: the library where it is installed and works, as for dense attention."""


def _anywhere(**_: object) -> None:
    """Return None: the plain PyTorch kernels take every device, type and shape."""


def _forward_only(**_: object) -> str:
    """Return why a kernel can't run where an input requires a gradient: it has no backward pass."""
    return "it has no backward pass, and an input requires a gradient"


@dataclass(frozen=True)
class Gradient:
    """How a kernel runs under autograd.

    Attributes:
        run: takes what `Backend.run` does; the output has a gradient, and its full rows are computed.
        reason: takes what `Backend.reason` does and is asked after it; None where there is a gradient, else why not.
    """

    run: Callable[..., Tensor]
    reason: Callable[..., str | None] = _anywhere


@dataclass(frozen=True)
class Backend:
    """One kernel.

    Attributes:
        reason: takes device, dtype, head_dim, q_block, k_block and shared (query heads that have one index) as keywords;
            None where the kernel runs, else why not.
        run: takes q, k, v, the index and scale, as `block_sparse_attention` does once everything is checked. It computes
            the rows that have a list; what it returns for full rows holds anything, unless it computes them itself.
        merges: tokens of the blocks that it merges finer ones into; None: it runs the index as it is.
        full_rows: what may compute full rows beside it, first that runs (see `attention_kernels.full_rows`); none: it does
            so itself.
        gradient: how it runs where an input requires a gradient; None: it refuses to.
    """

    reason: Callable[..., str | None]
    run: Callable[..., Tensor]
    merges: int | None = None
    full_rows: tuple[str, ...] = ON_GPUS
    gradient: Gradient | None = None

    def problem(self, *, grad: bool, **site: object) -> str | None:
        """Return why the kernel can't run at a site, the keywords of `reason`; None where it does. grad: under autograd."""
        reason = self.reason(**site)
        if reason is None and grad:
            return _forward_only() if self.gradient is None else self.gradient.reason(**site)
        return reason


def preferred(device: torch.device) -> tuple[str, ...]:
    """Return what kernel=auto tries, best first. The own kernels only: what auto takes must not depend on what else is
    installed."""
    if device.type != "cuda":
        return ("sdpa",)
    return ("hopper", "triton") if torch.cuda.get_device_capability(device)[0] == 9 else ("triton",)


def _triton_reason(
    *, device: torch.device, dtype: torch.dtype, head_dim: int, q_block: int, k_block: int, shared: int
) -> str | None:
    if reason := triton_problem(device, dtype):
        return reason
    if dtype not in TRITON_DTYPES:
        return f"it takes float16, bfloat16 and float32, not {dtype}"
    if q_block not in TRITON_BLOCKS or k_block not in TRITON_BLOCKS:
        return f"it takes blocks of {', '.join(map(str, TRITON_BLOCKS))}, not {q_block} and {k_block}"
    if head_dim not in TRITON_DIMS:
        return f"it takes head dims {', '.join(map(str, TRITON_DIMS))}, not {head_dim}"
    return None


def _triton(q: Tensor, k: Tensor, v: Tensor, index: BlockIndex, *, scale: float) -> Tensor:
    from attention_kernels.block_sparse.triton_kernel import block_sparse_triton  # imported late: needs triton

    return block_sparse_triton(q, k, v, index, scale=scale)


def _triton_with_gradient(q: Tensor, k: Tensor, v: Tensor, index: BlockIndex, *, scale: float) -> Tensor:
    from attention_kernels.block_sparse.backward.triton_backward import block_sparse_triton_with_gradient

    return block_sparse_triton_with_gradient(q, k, v, index, scale=scale)


def _recomputed(run: Callable[..., Tensor], full_rows: str) -> Gradient:
    """Return how a kernel runs under autograd whose gradient is made anew in plain PyTorch."""

    def run_all(q: Tensor, k: Tensor, v: Tensor, index: BlockIndex, *, scale: float) -> Tensor:
        out, first = run(q, k, v, index, scale=scale), index.listed_queries
        if index.full_rows:
            full_row_attention(q[:, :, first:], k, v, out[:, :, first:], scale=scale, kernel=full_rows)
        return out

    return Gradient(lambda q, k, v, index, *, scale: Recomputed.apply(q, k, v, index, scale, run_all))


def _merged_reason(
    *, device: torch.device, dtype: torch.dtype, head_dim: int, q_block: int, k_block: int, shared: int
) -> str | None:
    if MERGED % q_block or MERGED % k_block:
        return f"it merges blocks that divide {MERGED}, not {q_block} and {k_block}"
    return flash4_reason(device=device, dtype=dtype, head_dim=head_dim, q_block=MERGED, k_block=MERGED, shared=shared)


def _merged_gradient_reason(
    *, device: torch.device, dtype: torch.dtype, head_dim: int, q_block: int, k_block: int, shared: int
) -> str | None:
    return flash4_gradient_reason(device=device, dtype=dtype, head_dim=head_dim, q_block=MERGED, k_block=MERGED, shared=shared)


_FLASH4 = Gradient(block_sparse_flash4_with_gradient, flash4_gradient_reason)
_MERGED = Gradient(block_sparse_flash4_with_gradient, _merged_gradient_reason)

BACKENDS = {
    "reference": Backend(
        _anywhere,
        block_sparse_reference,
        full_rows=("reference",),
        gradient=_recomputed(block_sparse_reference, "reference"),
    ),
    "sdpa": Backend(_anywhere, block_sparse_sdpa, full_rows=("sdpa",), gradient=_recomputed(block_sparse_sdpa, "sdpa")),
    "triton": Backend(_triton_reason, _triton, gradient=Gradient(_triton_with_gradient)),
    "hopper": Backend(hopper_reason, block_sparse_hopper, full_rows=()),
    "flash4": Backend(flash4_reason, block_sparse_flash4, gradient=_FLASH4),
    "flash4_merged": Backend(_merged_reason, block_sparse_flash4, merges=MERGED, gradient=_MERGED),
    "flex": Backend(flex_reason, block_sparse_flex),
}
"""Kernels by name. `flash4_merged` is flash4 on blocks merged to 128 × 128: for methods that select finer blocks."""
