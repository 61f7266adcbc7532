# mypy: disable-error-code="no-untyped-def"
"""One step's selection in Triton: a program holds the scores of one list in registers (see `cut_kernel`)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from attention_kernels.block_index import BlockIndex
from attention_kernels.selection.cut_kernel import THRESHOLD, TOPK, select_rows
from attention_kernels.tiles import power_of_two


# What changes from step to step is not specialised on: no compiling in the middle of decoding.
@triton.jit(do_not_specialize=["k_len", "width", "columns", "ssb", "ssh"])
def _select_step(
    Scores,
    Budget,
    Counts,
    Indices,
    Starts,
    ssb,
    ssh,
    heads,
    k_len,
    width,
    columns,
    level,
    K_BLOCK: tl.constexpr,
    W: tl.constexpr,
    RULE: tl.constexpr,
    PADDED: tl.constexpr,
):
    line = tl.program_id(0).to(tl.int64)
    b = line // heads
    cols = tl.arange(0, W)[None, :]
    scores = tl.load(Scores + b * ssb + line % heads * ssh + cols, mask=cols < columns, other=-float("inf"))
    if PADDED:
        k_len -= tl.load(Starts + b)
    FILL: tl.constexpr = 256 if W > 256 else W
    select_rows(
        scores,
        Budget + b,
        Counts + line,
        Indices + line * width,
        0,
        1,
        1,
        1,
        k_len,
        level,
        width,
        0.0,
        1.0,
        1,
        K_BLOCK,
        FILL,
        RULE,
        False,
    )


def select_step_triton(
    scores: Tensor, k_block: int, k_len: int, counts: Tensor | None, width: int, threshold: float | None, starts: Tensor | None
) -> BlockIndex:
    """Run `attention_kernels.selection.step.select_step` in Triton."""
    scores = scores if scores.stride(-1) == 1 else scores.contiguous()
    batch, heads, columns = scores.shape
    wide = max(16, power_of_two(columns))
    out_counts = torch.empty(batch, heads, 1, dtype=torch.int32, device=scores.device)
    indices = torch.empty(batch, heads, 1, width, dtype=torch.int32, device=scores.device)
    with torch.cuda.device_of(scores):  # Triton launches on the current device
        _select_step[(batch * heads,)](
            scores,
            out_counts if counts is None else counts.contiguous(),
            out_counts,
            indices,
            out_counts if starts is None else starts.contiguous(),
            *scores.stride()[:2],
            heads,
            k_len,
            width,
            columns,
            0.0 if threshold is None else threshold,
            K_BLOCK=k_block,
            W=wide,
            RULE=TOPK.value if threshold is None else THRESHOLD.value,
            PADDED=starts is not None,
            num_warps=min(16, max(1, wide // 512)),
        )
    return BlockIndex(out_counts, indices, q_block=1, k_block=k_block, q_len=1, k_len=k_len)
