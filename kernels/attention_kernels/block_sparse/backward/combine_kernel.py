# mypy: disable-error-code="no-untyped-def"
"""dK and dV of the key blocks that were split: their parts added up, in Triton."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from attention_kernels.block_sparse.backward.key_tasks import PARTS

ROWS = 16
"""Keys of a program."""


@triton.jit(do_not_specialize=["kv_heads", "cols", "k_len"])
def _combine(
    Part,
    DK,
    DV,
    Order,
    Splits,
    sdkb,
    sdkh,
    sdkn,
    sdvb,
    sdvh,
    sdvn,
    kv_heads,
    cols,
    k_len,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    K_BLOCK: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Add up the parts of a key block that was split, a few of its keys."""
    number = tl.program_id(0)
    if number >= tl.load(Splits):
        return
    place = tl.load(Order + number)
    row = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_d = tl.arange(0, BLOCK_D)
    col = place % cols * K_BLOCK + row
    b_ = (place // cols // kv_heads).to(tl.int64)
    hk_ = (place // cols % kv_heads).to(tl.int64)
    col_ = col.to(tl.int64)
    real = (col < k_len)[:, None] & (offs_d < D)[None, :]
    dk = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    dv = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for part in range(PARTS):
        where = Part + ((number * PARTS + part) * 2 * K_BLOCK).to(tl.int64) * D + row[:, None] * D + offs_d[None, :]
        dk += tl.load(where, mask=real, other=0.0)
        dv += tl.load(where + K_BLOCK * D, mask=real, other=0.0)
    to_k = DK + (b_ * sdkb + hk_ * sdkh + col_ * sdkn)[:, None] + offs_d[None, :]
    to_v = DV + (b_ * sdvb + hk_ * sdvh + col_ * sdvn)[:, None] + offs_d[None, :]
    tl.store(to_k, dk.to(DK.dtype.element_ty), mask=real)
    tl.store(to_v, dv.to(DV.dtype.element_ty), mask=real)


def add_parts(part: Tensor, dk: Tensor, dv: Tensor, order: Tensor, splits: Tensor, slots: int) -> None:
    """Write to dk and dv [B, Hkv, K, D] the sums over `part`, float32 [slots · PARTS, 2, k_block, D], of the key blocks that
    were split: the first of `order`, as many as `splits` says (see `key_tasks`)."""
    kv_heads, k_len, dim = dk.shape[1:]
    k_block = part.shape[2]
    with torch.cuda.device_of(dk):  # Triton launches on the current device
        _combine[(slots, triton.cdiv(k_block, ROWS))](
            part,
            dk,
            dv,
            order,
            splits,
            *dk.stride()[:3],
            *dv.stride()[:3],
            kv_heads,
            -(-k_len // k_block),
            k_len,
            D=dim,
            BLOCK_D=triton.next_power_of_2(dim),
            K_BLOCK=k_block,
            BLOCK_N=ROWS,
            PARTS=PARTS,
            num_warps=4,
        )
