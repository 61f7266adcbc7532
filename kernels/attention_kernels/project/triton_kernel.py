"""The linear map and RoPE of pooled vectors in Triton: one launch, what is rotated never goes to memory unrotated.

Float32 products are made of three TF32 ones ("tf32x3"): 22 bits of each factor, where float32 has 24, at three times the
cost of TF32 instead of the thirty of float32 without tensor cores.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from attention_kernels.rope import kernel_tables


@triton.jit
def project_rows(
    Rows,
    W,
    Cos,
    Sin,
    m,
    in_rows,
    swi,
    scm,
    ssm,
    INNER: tl.constexpr,
    D: tl.constexpr,
    HALF: tl.constexpr,
    PAD_HALF: tl.constexpr,
    PAD_REST: tl.constexpr,
    BLOCK_I: tl.constexpr,
    LINEAR: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Return the vectors at Rows [M, 1], mapped by the head's W and rotated as rows m [M] of the tables: two halves that turned
    [M, PAD_HALF], and the rest [M, PAD_REST]. in_rows [M, 1]: where there are any; elsewhere all is 0."""
    offs_h = tl.arange(0, PAD_HALF)
    offs_r = tl.arange(0, PAD_REST)
    in_half = (offs_h < HALF)[None, :]
    in_rest = (offs_r < D - 2 * HALF)[None, :]
    one = tl.zeros([m.shape[0], PAD_HALF], tl.float32)
    two = tl.zeros([m.shape[0], PAD_HALF], tl.float32)
    rest = tl.zeros([m.shape[0], PAD_REST], tl.float32)
    if LINEAR:
        for start in range(0, INNER, BLOCK_I):
            i = start + tl.arange(0, BLOCK_I)
            in_i = i < INNER
            x = tl.load(Rows + i[None, :], mask=in_rows & in_i[None, :], other=0.0)
            w = W + i[:, None] * swi
            if HALF > 0:
                w_one = tl.load(w + offs_h[None, :], mask=in_i[:, None] & in_half, other=0.0)
                one = tl.dot(x, w_one, one, input_precision=PRECISION)
                w_two = tl.load(w + HALF + offs_h[None, :], mask=in_i[:, None] & in_half, other=0.0)
                two = tl.dot(x, w_two, two, input_precision=PRECISION)
            if D > 2 * HALF:
                w_rest = tl.load(w + 2 * HALF + offs_r[None, :], mask=in_i[:, None] & in_rest, other=0.0)
                rest = tl.dot(x, w_rest, rest, input_precision=PRECISION)
    else:
        if HALF > 0:
            one = tl.load(Rows + offs_h[None, :], mask=in_rows & in_half, other=0.0).to(tl.float32)
            two = tl.load(Rows + HALF + offs_h[None, :], mask=in_rows & in_half, other=0.0).to(tl.float32)
        if D > 2 * HALF:
            rest = tl.load(Rows + 2 * HALF + offs_r[None, :], mask=in_rows & in_rest, other=0.0).to(tl.float32)
    if HALF > 0:
        cos = tl.load(Cos + m.to(tl.int64)[:, None] * scm + offs_h[None, :], mask=in_rows & in_half, other=1.0)
        sin = tl.load(Sin + m.to(tl.int64)[:, None] * ssm + offs_h[None, :], mask=in_rows & in_half, other=0.0)
        turned = one * cos - two * sin
        two = two * cos + one * sin
        one = turned
    return one, two, rest


# What changes with a prompt's length is not specialised on: no compiling for each length.
@triton.jit(do_not_specialize=["length"])
def _project(
    X,
    W,
    Cos,
    Sin,
    Out,
    sxb,
    sxh,
    sxm,
    swh,
    swi,
    scm,
    ssm,
    heads,
    group,
    length,
    INNER: tl.constexpr,
    D: tl.constexpr,
    HALF: tl.constexpr,
    PAD_HALF: tl.constexpr,
    PAD_REST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_I: tl.constexpr,
    LINEAR: tl.constexpr,
    PRECISION: tl.constexpr,
):
    b = (tl.program_id(1) // heads).to(tl.int64)
    h = (tl.program_id(1) % heads).to(tl.int64)
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    in_rows = (m < length)[:, None]
    rows = X + b * sxb + (h // group) * sxh + m.to(tl.int64)[:, None] * sxm
    one, two, rest = project_rows(
        rows, W + h * swh, Cos, Sin, m, in_rows, swi, scm, ssm, INNER, D, HALF, PAD_HALF, PAD_REST, BLOCK_I, LINEAR, PRECISION
    )
    offs_h = tl.arange(0, PAD_HALF)
    offs_r = tl.arange(0, PAD_REST)
    line = Out + ((b * heads + h) * length + m.to(tl.int64)[:, None]) * D
    if HALF > 0:
        tl.store(line + offs_h[None, :], one, mask=in_rows & (offs_h < HALF)[None, :])
        tl.store(line + HALF + offs_h[None, :], two, mask=in_rows & (offs_h < HALF)[None, :])
    if D > 2 * HALF:
        tl.store(line + 2 * HALF + offs_r[None, :], rest, mask=in_rows & (offs_r < D - 2 * HALF)[None, :])


def project_triton(x: Tensor, weight: Tensor | None, cos: Tensor | None, sin: Tensor | None) -> Tensor:
    """Run `attention_kernels.project.project` in Triton."""
    x = x if x.stride(-1) == 1 else x.contiguous()
    batch, own, length, inner = x.shape
    heads, dim = (own, inner) if weight is None else (weight.shape[0], weight.shape[2])
    out = torch.empty(batch, heads, length, dim, dtype=torch.float32, device=x.device)
    if weight is None:
        w, stride_h, stride_i = x, 0, 0  # never read
    else:
        w = weight.detach().to(x.dtype)
        w = w if w.stride(-1) == 1 else w.contiguous()
        stride_h, stride_i = w.stride(0), w.stride(1)
    cos, sin, half = kernel_tables(cos, sin, unread=out)
    rest = dim - 2 * half
    tile = 32 if x.is_cuda else 16
    with torch.cuda.device_of(x):  # Triton launches on the current device
        _project[(-(-length // tile), batch * heads)](
            x,
            w,
            cos,
            sin,
            out,
            *x.stride()[:3],
            stride_h,
            stride_i,
            cos.stride(0),
            sin.stride(0),
            heads,
            heads // own,
            length,
            INNER=inner,
            D=dim,
            HALF=half,
            PAD_HALF=max(16, triton.next_power_of_2(half)) if half else 1,
            PAD_REST=max(16, triton.next_power_of_2(rest)) if rest else 1,
            BLOCK_M=tile,
            BLOCK_I=32 if x.is_cuda else 16,
            LINEAR=weight is not None,
            PRECISION="tf32x3" if x.dtype == torch.float32 else "tf32",
            num_warps=4,
            num_stages=3,
        )
    return out
