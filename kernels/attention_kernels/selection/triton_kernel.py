"""Scoring and selecting blocks in one launch: scores of a few rows at a time pass through a scratch.

Each of a fixed number of programs takes tiles of rows in turn. It scores its tile against all causal columns (tensor cores;
float32 inputs, and means of queries, as two float16 halves each, see `split_kernel`), puts the scores in its own part of the
scratch, and reads them back as whole rows, to select in registers (see `cut`). Nothing of size Mq × Nk is stored, nothing
waits for the host. The scratch takes 4 × 32 × 4 bytes for every SM and column: 132 MiB on an H100 with 2048 columns, of
which causality uses half. What doesn't fit into L2 goes to memory and back, so rows are read one step ahead.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from attention_kernels.block_index import BlockIndex
from attention_kernels.selection.cut_kernel import MASS, THRESHOLD, TOPK
from attention_kernels.selection.pooled_kernel import select_pooled_kernel
from attention_kernels.selection.reference import one_key_head
from attention_kernels.selection.split_kernel import split_halves
from attention_kernels.tiles import power_of_two, shared_bytes

MOST_COLUMNS = 65535
"""Key blocks at most: a row is held in registers, past 8192 in part in local memory, and the scratch takes 64 KiB a column."""


@dataclass(frozen=True)
class Config:
    """rows and columns of a score tile; elements: most scores of whole rows held at once; programs for each SM, of which
    some score while others select."""

    rows: int = 64
    columns: int = 64
    elements: int = 4096
    warps: int = 4
    stages: int = 2
    programs: int = 2

    def at_once(self, wide: int) -> int:
        """Return how many rows of `wide` scores to select in at once. Of short rows fewer elements: a row's own numbers take
        registers too."""
        return min(self.rows, max(1, min(self.elements // wide, max(2, self.elements // (2 * wide)))))


@lru_cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def select_triton(
    q: Tensor,
    k: Tensor,
    shape: tuple[int, int, int, int],
    *,
    scale: float,
    counts: tuple[Tensor, int] | None,
    threshold: float | None,
    mass: float | None,
    share: int,
    combine: str,
    max_blocks: int | None,
    full_rows: int = 0,
    config: Config | None = None,
) -> BlockIndex:
    """Run `attention_kernels.selection.select_from_pooled` in Triton. Counts: what `kept_counts` returned, or None for the
    other rules."""
    q_len, k_len, q_block, k_block = shape
    q, k = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k))
    batch, q_heads, rows, dim = q.shape
    cols, heads = k.shape[2], q_heads // share
    folds = share > 1 and combine == "mean" and one_key_head(q_heads, k.shape[1], share)
    if cols > MOST_COLUMNS or dim > 256:
        raise ValueError(f"kernel=triton selects from {MOST_COLUMNS} key blocks and vectors of 256 at most, not {cols}, {dim}")
    wide = power_of_two(cols)
    config = config or _config(q, 1 if folds else share, wide)
    rule, level = TOPK.value, 0.0
    if counts is not None:
        budget, width = counts
    else:
        budget, width = q, min(max_blocks or cols, cols)  # q: never read
        if threshold is not None:
            rule, level = THRESHOLD.value, threshold
        elif mass is not None:
            rule, level = MASS.value, mass
    wide = max(config.columns, wide)
    at_once = config.at_once(wide)
    tiles = -(-rows // config.rows)
    total = batch * heads * tiles
    programs = min(total, config.programs * _processors(q.device) if q.is_cuda else 3)
    if q.dtype == torch.float32 or folds:
        q_half, k_half = split_halves(q, k, share if folds else 1)
        if folds:
            q_heads, share = heads, 1
        q, q_unit, q_low = q_half.parts[0], q_half.unit, q_half.parts[0].numel()
        k, k_unit, k_low = k_half.parts[0], k_half.unit, k_half.parts[0].numel()
    else:
        q_unit, k_unit, q_low, k_low = q, k, 0, 0  # never read
    scratch = torch.empty(programs, config.rows, wide, dtype=torch.float32, device=q.device)
    out_counts = torch.empty(batch, heads, rows, dtype=torch.int32, device=q.device)
    indices = torch.empty(batch, heads, rows, width, dtype=torch.int32, device=q.device)
    with torch.cuda.device_of(q):  # Triton launches on the current device
        select_pooled_kernel[(programs,)](
            q,
            k,
            q_unit,
            k_unit,
            scratch,
            budget,
            out_counts,
            indices,
            q_low,
            k_low,
            *q.stride()[:3],
            *k.stride()[:3],
            heads,
            k.shape[1],
            q_heads // k.shape[1],
            tiles,
            total,
            rows,
            rows - full_rows,
            cols,
            q_len,
            k_len,
            scale / share if combine == "mean" else scale,
            level,
            width,
            Q_BLOCK=q_block,
            K_BLOCK=k_block,
            D=dim,
            PAD_D=max(16, power_of_two(dim)),
            BLOCK_M=config.rows,
            BLOCK_N=config.columns,
            R=at_once,
            W=wide,
            SHARE=share,
            MAX=combine == "max",
            RULE=rule,
            CAPPED=counts is None and width < cols,
            AHEAD=at_once * wide <= 1024 * config.warps,
            SPLIT=q_low > 0,
            num_warps=config.warps,
            num_stages=config.stages,
        )
    return BlockIndex(out_counts, indices, q_block, k_block, q_len, k_len, full_rows)


def _config(q: Tensor, share: int, wide: int) -> Config:
    if not q.is_cuda:
        return Config(rows=16, columns=16, elements=512)  # the interpreter: small enough for tests to take several of each
    stages = 1 if shared_bytes(q.device) < 112 << 10 else 2  # GPUs below an A100: a single stage
    if q.shape[3] > 128:
        return Config(columns=32, stages=stages)
    if share > 1:
        return Config(elements=2048, stages=1)
    # Measured on an H100, where a row's own numbers are the more of a program's work the fewer threads share it. More programs
    # need more scratch than L2 holds, and are slower
    if wide <= 1024:
        return Config(rows=16, columns=32, elements=1024, warps=1, stages=1, programs=8)
    if wide <= 2048:
        return Config(rows=32, columns=64, elements=2048, warps=2, stages=1, programs=4)
    return Config(stages=stages)
