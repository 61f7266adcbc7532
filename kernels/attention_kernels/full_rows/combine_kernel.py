# mypy: disable-error-code="no-untyped-def"
"""The last step of full rows that a kernel has computed in parts: each part's output, weighted by its share of the softmax's
denominator."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from attention_kernels.decode.triton_kernel import can_overlap
from attention_kernels.tiles import power_of_two

QUERIES = 8
"""Queries that a program combines."""


@triton.jit(do_not_specialize=["heads", "tokens", "parts", "splits", "q_block", "group"])
def _combine(
    Part,
    Sizes,
    Out,
    sob,
    soh,
    som,
    heads,
    tokens,
    parts,
    splits,
    q_block,
    group,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    QUERIES: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Combine QUERIES queries of one head; Part and Sizes as `combine_parts` takes them."""
    line = tl.program_id(1)
    token = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    real = token < tokens
    offs_d = tl.arange(0, BLOCK_D)
    inside = (offs_d < D)[None, :]
    rows = q_block * group
    first = ((line // group).to(tl.int64) * parts + token // q_block * splits) * rows + token % q_block * group + line % group
    if OVERLAP:
        tl.extra.cuda.gdc_wait()  # until the parts are there
    top = tl.full([QUERIES], -float("inf"), tl.float32)
    for split in range(0, splits):
        top = tl.maximum(top, tl.load(Sizes + first + split * rows, mask=real, other=0.0))
    total = tl.zeros([QUERIES], tl.float32)
    acc = tl.zeros([QUERIES, BLOCK_D], tl.float32)
    for split in range(0, splits):
        weight = tl.exp2(tl.load(Sizes + first + split * rows, mask=real, other=0.0) - top)
        seen = real & (weight > 0.0)  # a query that sees no key of a part has NaN there
        at = (first + split * rows)[:, None] * D + offs_d[None, :]
        values = tl.load(Part + at, mask=seen[:, None] & inside, other=0.0)
        total += weight
        acc += weight[:, None] * values.to(tl.float32)
    acc = acc / total[:, None]
    out = Out + (line // heads).to(tl.int64) * sob + (line % heads).to(tl.int64) * soh
    out += token.to(tl.int64)[:, None] * som + offs_d[None, :]
    tl.store(out, acc.to(Out.dtype.element_ty), mask=real[:, None] & inside)


def combine_parts(
    part: Tensor, sizes: Tensor, out: Tensor, *, q_block: int, splits: int, group: int = 1, overlap: bool | None = None
) -> None:
    """Write to out [B, Hq, T, D] the attention of T queries, the last query blocks of a prompt, each of `splits` parts.

    part [B · Hq / group, blocks · splits, q_block · group, D]: the parts of a block lie behind each other, each the output over
    some of the keys; `group` heads lie beside each other, token by token. sizes: float32, the same without D: log2 of the
    softmax's denominator; minus infinity where a query saw no key. Both are contiguous, out is along D. overlap: with the end
    of the kernel that computes the parts; chosen unless given.
    """
    batch, heads, tokens, dim = out.shape
    overlap = can_overlap(out.device) if overlap is None else overlap
    options: dict[str, Any] = {"launch_pdl": True} if overlap else {}
    with torch.cuda.device_of(out):  # Triton launches on the current device
        _combine[(-(-tokens // QUERIES), batch * heads)](
            part,
            sizes,
            out,
            *out.stride()[:3],
            heads,
            tokens,
            part.shape[1],
            splits,
            q_block,
            group,
            D=dim,
            BLOCK_D=max(16, power_of_two(dim)),
            QUERIES=QUERIES,
            OVERLAP=overlap,
            num_warps=4,
            **options,
        )
