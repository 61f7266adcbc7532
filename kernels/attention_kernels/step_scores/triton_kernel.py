# mypy: disable-error-code="no-untyped-def"
"""One step's block scores in Triton. Floor: the bytes of the keys; each program reads one tile of them, for all its heads."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from attention_kernels.tiles import power_of_two

TILE_BYTES = 32 << 10
"""Of keys that a program reads: 64 blocks of 256 elements in 16 bits."""


# What changes from step to step is not specialised on: no compiling in the middle of decoding.
@triton.jit(do_not_specialize=["blocks", "sob", "soh"])
def _step_scores(
    Q,
    Keys,
    Out,
    sqb,
    sqh,
    skb,
    skh,
    skn,
    sob,
    soh,
    key_heads,
    blocks,
    scale,
    E: tl.constexpr,
    PAD_E: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):
    line = tl.program_id(1)
    b = (line // key_heads).to(tl.int64)
    h = line % key_heads
    g = tl.arange(0, BLOCK_G)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    e = tl.arange(0, PAD_E)
    head = h * GROUP + g
    q = tl.load(Q + b * sqb + head[:, None] * sqh + e[None, :], mask=(g < GROUP)[:, None] & (e < E)[None, :], other=0.0)
    keys = tl.load(
        Keys + b * skb + h.to(tl.int64) * skh + n.to(tl.int64)[:, None] * skn + e[None, :],
        mask=(n < blocks)[:, None] & (e < E)[None, :],
        other=0.0,
    )
    s = tl.dot(q, tl.trans(keys), input_precision=PRECISION) * scale
    at = Out + b * sob + head.to(tl.int64)[:, None] * soh + n[None, :]
    tl.store(at, s, mask=(g < GROUP)[:, None] & (n < blocks)[None, :])


def step_scores_triton(q: Tensor, keys: Tensor, scale: float) -> Tensor:
    """Run `attention_kernels.step_scores.step_scores` in Triton."""
    q, keys = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, keys))
    batch, heads, dim = q.shape
    key_heads, blocks = keys.shape[1:3]
    pad = max(16, power_of_two(dim))
    tile = max(16, min(64, TILE_BYTES // (pad * q.element_size())))
    out = torch.empty(batch, heads, blocks, dtype=torch.float32, device=q.device)
    with torch.cuda.device_of(q):  # Triton launches on the current device
        _step_scores[(-(-blocks // tile), batch * key_heads)](
            q,
            keys,
            out,
            *q.stride()[:2],
            *keys.stride()[:3],
            *out.stride()[:2],
            key_heads,
            blocks,
            scale,
            E=dim,
            PAD_E=pad,
            GROUP=heads // key_heads,
            BLOCK_G=max(16, power_of_two(heads // key_heads)),
            BLOCK_N=tile,
            PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
            num_warps=4,
        )
    return out
