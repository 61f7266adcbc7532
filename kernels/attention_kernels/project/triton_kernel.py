"""The linear map and RoPE of pooled vectors in Triton: one launch, what is rotated never goes to memory unrotated.

Float32 products are made of three TF32 ones (`dot_kernel.py`), at three times the cost of TF32 instead of the thirty of float32
without tensor cores. Of few rows a program takes some of the columns only: all SMs have work, and each weight is read once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from attention_kernels.project.dot_kernel import dot_parts, whole
from attention_kernels.rope import kernel_tables
from attention_kernels.tiles import power_of_two


@dataclass(frozen=True)
class Launch:
    """The shape of a launch. tile: rows of a program; pairs: elements of each half that it maps, of a head's; inner: elements
    of x that it maps at once."""

    tile: int
    pairs: int
    inner: int
    warps: int
    stages: int = 3

    def sizes(self, dim: int, half: int) -> tuple[dict[str, int], int]:
        """Return the constants of a kernel for vectors of `dim` elements of which 2 · `half` rotate, and the parts in which
        programs map them."""
        rest = dim - 2 * half
        parts = -(-half // self.pairs) if half else -(-rest // (2 * self.pairs))
        return {
            "D": dim,
            "HALF": half,
            "PAD_HALF": self.pairs if half else 1,
            "PAD_REST": max(16, power_of_two(-(-rest // parts))) if rest else 1,
            "BLOCK_M": self.tile,
            "BLOCK_I": self.inner,
            "num_warps": self.warps,
            "num_stages": self.stages,
        }, parts


FEW_ROWS = 256
"""Rows of a head up to which a program maps some of the columns only."""


def launch_shape(rows: int, half: int, *, on_gpu: bool) -> Launch:
    """Return the shape of a launch for `rows` rows of which 2 · `half` elements rotate."""
    if not on_gpu:
        return Launch(16, pairs=16, inner=32, warps=4)
    if rows > FEW_ROWS:
        return Launch(32, pairs=max(16, power_of_two(half)), inner=32, warps=4)
    # Of nine shapes the fastest between pooling and choice at 4k and 8k tokens (H200, Llama-3.1-8B's attention)
    return Launch(32, pairs=min(32, max(16, power_of_two(half))), inner=64, warps=4)


@triton.jit
def prefetch(at):
    """Begin to bring what lies at pointers `at` to L2, whoever writes it."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; // dummy $0", "=r,l", [at.to(tl.int64)], dtype=tl.int32, is_pure=False, pack=1
    )


@triton.jit
def project_rows(
    Rows,
    W,
    Cos,
    Sin,
    m,
    in_rows,
    part,
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
):
    """Return the vectors at Rows [M, 1], mapped by the head's W and rotated as rows m [M] of the tables: two halves that turned
    [M, PAD_HALF], and the rest [M, PAD_REST]. in_rows [M, 1]: where there are any; elsewhere all is 0. part: so many times
    PAD_HALF elements of both halves, and PAD_REST of the rest, lie before those that are returned."""
    M: tl.constexpr = m.shape[0]
    offs_h = part * PAD_HALF + tl.arange(0, PAD_HALF)
    offs_r = part * PAD_REST + tl.arange(0, PAD_REST)
    in_half = (offs_h < HALF)[None, :]
    in_rest = (offs_r < D - 2 * HALF)[None, :]
    one = tl.zeros([M, PAD_HALF], tl.float32)
    two = tl.zeros([M, PAD_HALF], tl.float32)
    rest = tl.zeros([M, PAD_REST], tl.float32)
    if LINEAR:
        # both halves in one product: less to load and to split a product
        offs_b = tl.arange(0, 2 * PAD_HALF)
        offs_p = part * PAD_HALF + offs_b % PAD_HALF
        in_both = (offs_p < HALF)[None, :]
        offs_b = offs_p + offs_b // PAD_HALF * HALF
        both = tl.zeros([M, 2 * PAD_HALF], tl.float32)
        both_low = tl.zeros([M, 2 * PAD_HALF], tl.float32)
        rest_low = tl.zeros([M, PAD_REST], tl.float32)
        for start in range(0, INNER, BLOCK_I):
            i = start + tl.arange(0, BLOCK_I)
            in_i = i < INNER
            x = tl.load(Rows + i[None, :], mask=in_rows & in_i[None, :], other=0.0)
            w = W + i[:, None] * swi
            if HALF > 0:
                w_both = tl.load(w + offs_b[None, :], mask=in_i[:, None] & in_both, other=0.0)
                both, both_low = dot_parts(x, w_both, both, both_low)
            if D > 2 * HALF:
                w_rest = tl.load(w + 2 * HALF + offs_r[None, :], mask=in_i[:, None] & in_rest, other=0.0)
                rest, rest_low = dot_parts(x, w_rest, rest, rest_low)
        if HALF > 0:
            both = whole(both, both_low)
            one, two = tl.split(tl.permute(tl.reshape(both, [M, 2, PAD_HALF]), [0, 2, 1]))
        if D > 2 * HALF:
            rest = whole(rest, rest_low)
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


@triton.jit
def project_tile(
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
    tile,
    line,
    part,
    INNER: tl.constexpr,
    D: tl.constexpr,
    HALF: tl.constexpr,
    PAD_HALF: tl.constexpr,
    PAD_REST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_I: tl.constexpr,
    LINEAR: tl.constexpr,
):
    """Project the tile-th BLOCK_M rows of a line, which stands for a head of a row of the batch: the part-th part of their
    elements."""
    b = (line // heads).to(tl.int64)
    h = (line % heads).to(tl.int64)
    m = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    in_rows = (m < length)[:, None]
    rows = X + b * sxb + (h // group) * sxh + m.to(tl.int64)[:, None] * sxm
    one, two, rest = project_rows(
        rows,
        W + h * swh,
        Cos,
        Sin,
        m,
        in_rows,
        part,
        swi,
        scm,
        ssm,
        INNER,
        D,
        HALF,
        PAD_HALF,
        PAD_REST,
        BLOCK_I,
        LINEAR,
    )
    offs_h = part * PAD_HALF + tl.arange(0, PAD_HALF)
    offs_r = part * PAD_REST + tl.arange(0, PAD_REST)
    out = Out + ((b * heads + h) * length + m.to(tl.int64)[:, None]) * D
    if HALF > 0:
        tl.store(out + offs_h[None, :], one, mask=in_rows & (offs_h < HALF)[None, :])
        tl.store(out + HALF + offs_h[None, :], two, mask=in_rows & (offs_h < HALF)[None, :])
    if D > 2 * HALF:
        tl.store(out + 2 * HALF + offs_r[None, :], rest, mask=in_rows & (offs_r < D - 2 * HALF)[None, :])


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
):
    project_tile(
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
        tl.program_id(0),
        tl.program_id(1),
        tl.program_id(2),
        INNER,
        D,
        HALF,
        PAD_HALF,
        PAD_REST,
        BLOCK_M,
        BLOCK_I,
        LINEAR,
    )


def project_triton(x: Tensor, weight: Tensor | None, cos: Tensor | None, sin: Tensor | None) -> Tensor:
    """Run `attention_kernels.project.project` in Triton."""
    x = x if x.stride(-1) == 1 else x.contiguous()
    batch, own, length, inner = x.shape
    heads, dim = (own, inner) if weight is None else (weight.shape[0], weight.shape[2])
    out = torch.empty(batch, heads, length, dim, dtype=torch.float32, device=x.device)
    w, strides = kernel_weight(weight, x)
    cos, sin, half = kernel_tables(cos, sin, unread=out)
    launch = launch_shape(length, half, on_gpu=x.is_cuda)
    sizes, parts = launch.sizes(dim, half)
    with torch.cuda.device_of(x):  # Triton launches on the current device
        _project[(-(-length // launch.tile), batch * heads, parts)](
            x,
            w,
            cos,
            sin,
            out,
            *x.stride()[:3],
            *strides,
            cos.stride(0),
            sin.stride(0),
            heads,
            heads // own,
            length,
            INNER=inner,
            LINEAR=weight is not None,
            **sizes,
        )
    return out


def kernel_weight(weight: Tensor | None, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """Return a map in x's type, its elements side by side, and its strides; where there is none, x in its place, never read."""
    if weight is None:
        return x, (0, 0)
    weight = weight.detach().to(x.dtype)
    weight = weight if weight.stride(-1) == 1 else weight.contiguous()
    return weight, (weight.stride(0), weight.stride(1))
