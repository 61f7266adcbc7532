# mypy: disable-error-code="no-untyped-def"
"""The search for the smallest entry that is kept, in one launch: a program holds the whole map of a head in its registers.

With torch's operations each bit costs six launches, 180 in all: for short prompts more than all else that is done.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from attention_kernels.tiles import power_of_two

BITS = tl.constexpr(30)
HIGHEST = tl.constexpr(1 << 29)
"""Of a float32 from 0 to below 2: its sign and the highest bit of its exponent are not set."""


@triton.jit(do_not_specialize=["entries"])
def _largest_within(Probs, Kept, entries, mass, W: tl.constexpr):
    """Mark the entries of one head, laid out as one row; W: as many or more, a power of two."""
    start = tl.program_id(0).to(tl.int64) * entries
    at = tl.arange(0, W)
    inside = at < entries
    probs = tl.load(Probs + start + at, mask=inside, other=0.0)
    bits = probs.to(tl.int32, bitcast=True)
    too_low = tl.full([], -1, tl.int32)  # the largest number whose entries and those above sum to too much
    step = tl.full([], HIGHEST, tl.int32)
    for _ in range(BITS):
        middle = too_low + step
        fits = tl.sum(tl.where(bits >= middle, probs, 0.0), 0) <= mass
        too_low = tl.where(fits, too_low, middle)
        step = step // 2
    tl.store(Kept + start + at, (bits > too_low).to(tl.uint8), mask=inside)


def largest_within_triton(probs: Tensor, mass: float) -> Tensor:
    """Run `attention_kernels.largest_within.largest_within` in Triton."""
    probs = probs.contiguous()
    batch, heads, rows, cols = probs.shape
    kept = torch.empty(probs.shape, dtype=torch.bool, device=probs.device)
    wide = power_of_two(rows * cols)
    with torch.cuda.device_of(probs):  # Triton launches on the current device
        _largest_within[(batch * heads,)](
            probs, kept.view(torch.uint8), rows * cols, float(mass), W=wide, num_warps=min(16, max(1, wide // 1024))
        )
    return kept
