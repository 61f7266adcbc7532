"""The largest entries of a head's whole map that sum to no more than a mass: FlexPrefill's choice (arXiv 2502.20766)."""

from __future__ import annotations

from torch import Tensor

from attention_kernels.backends import resolve_backend
from attention_kernels.largest_within.reference import largest_within_reference

MOST_ENTRIES = 1 << 14
"""Entries of a map that one Triton program holds in its registers: 8k tokens in blocks of 64."""


def largest_within(probs: Tensor, mass: float, *, kernel: str = "auto") -> Tensor:
    """Return bool [B,H,Mq,Nk], the largest entries of each head's map probs, as many as sum to no more than `mass`.

    Equal entries are kept or left out together. probs: float32 or float64, from 0 to below 2. The smallest entry that is kept
    is searched bit by bit, as numbers above 0 order as their bits do: sums over the map, no sorting. kernel: triton searches in
    one launch, up to MOST_ENTRIES entries a head and in float32; reference in some two hundred; auto takes triton on CUDA where
    it can. Raises ValueError where triton can't.
    """
    entries, auto = probs.shape[-2] * probs.shape[-1], kernel == "auto"
    if resolve_backend(kernel, probs) == "triton":
        runs = entries <= MOST_ENTRIES and probs.element_size() == 4
        if not runs and not auto:
            raise ValueError(
                f"kernel=triton takes float32 maps of at most {MOST_ENTRIES} entries a head, not {probs.dtype} of {entries}; "
                "use kernel=reference"
            )
        if runs and probs.numel():
            from attention_kernels.largest_within.triton_kernel import largest_within_triton  # imported late: needs triton

            return largest_within_triton(probs, mass)
    return largest_within_reference(probs, mass)
