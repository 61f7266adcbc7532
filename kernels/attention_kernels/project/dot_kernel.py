# mypy: disable-error-code="no-untyped-def"
"""Float32 products on tensor cores, in Triton: each factor in two TF32 parts, and three of their four products.

Triton's own "tf32x3" rounds both parts to the nearest, which takes nine instructions an element. Here the high part is the
float without its last 13 bits, and the low one is rounded by adding half of what tensor cores ignore: three instructions, for
21 bits of each factor in place of 22.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _parts(x):
    """Return the high and the low TF32 part of float32 x."""
    high = (x.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)
    # Tensor cores ignore the last 13 bits of the sum. A NaN may become a number here: it is one in the high part too
    low = ((x - high).to(tl.int32, bitcast=True) + 4096).to(tl.float32, bitcast=True)
    return high, low


@triton.jit
def dot_parts(a, b, acc, rest):
    """Add a [M, K] @ b [K, N] to acc and rest [M, N], whose sum `whole` returns. Of 16 bits all is in acc."""
    if a.dtype == tl.float32:
        a_high, a_low = _parts(a)
        b_high, b_low = _parts(b)
        rest = tl.dot(a_low, b_high, rest, input_precision="tf32")
        rest = tl.dot(a_high, b_low, rest, input_precision="tf32")
        acc = tl.dot(a_high, b_high, acc, input_precision="tf32")
    else:
        acc = tl.dot(a, b, acc)
    return acc, rest


@triton.jit
def whole(acc, rest):
    """Return the products of `dot_parts`. Where an infinity or NaN is among the factors, acc alone is right."""
    return acc + tl.where(tl.abs(rest) < float("inf"), rest, 0.0)
