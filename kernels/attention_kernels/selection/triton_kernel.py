"""Scoring and selecting blocks in one launch: scores of a few rows at a time pass through a scratch.

Each of a fixed number of programs takes tiles of rows in turn. It scores its tile against all causal columns (tensor cores;
float32 inputs, and means of queries, as two float16 halves each, see `split`), puts the scores in its own part of the
scratch, and reads them back as whole rows, to select in registers (see `cut`). Nothing of size Mq × Nk is stored, nothing
waits for the host. The scratch takes 4 × 32 × 4 bytes for every SM and column: 132 MiB on an H100 with 2048 columns, of
which causality uses half. What doesn't fit into L2 goes to memory and back, so rows are read one step ahead.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from attention_kernels.block_index import BlockIndex
from attention_kernels.selection.cut_kernel import MASS, THRESHOLD, TOPK, select_rows
from attention_kernels.selection.reference import one_key_head
from attention_kernels.selection.split_kernel import split
from attention_kernels.tiles import shared_bytes

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
        """Rows of `wide` scores to select in at once. Of short rows fewer elements: a row's own numbers take registers too."""
        return min(self.rows, max(1, min(self.elements // wide, max(2, self.elements // (2 * wide)))))


@triton.jit
def _queries(Q, Unit, low, head, m, stride, rows, D: tl.constexpr, PAD_D: tl.constexpr, SPLIT: tl.constexpr):
    """Queries of the rows m [M]: high and low halves [M, D], unit [M]. Q: the head's first row; low: from there to its
    low halves. Without SPLIT all is in the first."""
    offs_d = tl.arange(0, PAD_D)
    inside = (m < rows)[:, None] & (offs_d < D)[None, :]
    at = Q + m[:, None] * stride + offs_d[None, :]
    high = tl.load(at, mask=inside, other=0.0)
    rest = high
    unit = tl.full(m.shape, 1.0, tl.float32)
    if SPLIT:
        rest = tl.load(at + low, mask=inside, other=0.0)
        unit = tl.load(Unit + head * rows + m, mask=m < rows, other=1.0)
    return high, rest, unit


@triton.jit
def _dot(q, q_rest, q_unit, K, Unit, low, head, n, stride, cols, D: tl.constexpr, PAD_D: tl.constexpr, SPLIT: tl.constexpr):
    """Scores [M, N] of what `_queries` returned and the keys n [N], of which K, Unit, low and head say what Q's did."""
    offs_d = tl.arange(0, PAD_D)
    inside = (n < cols)[:, None] & (offs_d < D)[None, :]
    at = K + n[:, None] * stride + offs_d[None, :]
    k = tl.load(at, mask=inside, other=0.0)
    s = tl.dot(q, k.T)
    if SPLIT:
        rest = tl.dot(q_rest, k.T)
        rest = tl.dot(q, tl.load(at + low, mask=inside, other=0.0).T, rest)
        s += tl.where(rest == rest, rest, 0.0)  # NaN here only: an infinity times a low half of 0
        s = s * q_unit[:, None] * tl.load(Unit + head * cols + n, mask=n < cols, other=1.0)[None, :]
    return s


@triton.jit
def _select_tile(
    Line,
    Budget,
    Counts,
    Indices,
    first,
    rows,
    q_len,
    k_len,
    level,
    width,
    guess,
    reach,
    scratch_width,
    Q_BLOCK: tl.constexpr,
    K_BLOCK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    R: tl.constexpr,
    W: tl.constexpr,
    RULE: tl.constexpr,
    CAPPED: tl.constexpr,
    AHEAD: tl.constexpr,
):
    """Select in the BLOCK_M rows whose scores are at Line, R at once. AHEAD: the next ones are on their way meanwhile."""
    FILL: tl.constexpr = 256 if W > 256 else W
    at = Line + tl.arange(0, R)[:, None] * scratch_width + tl.arange(0, W)[None, :]
    scores = tl.load(at)
    for r in range(0, tl.minimum(BLOCK_M, rows - first), R):
        coming = scores
        if AHEAD:
            coming = tl.load(at + tl.minimum(r + R, BLOCK_M - R) * scratch_width)
        guess, reach = select_rows(
            scores,
            Budget,
            Counts,
            Indices,
            first + r,
            rows,
            q_len,
            k_len,
            level,
            width,
            guess,
            reach,
            Q_BLOCK,
            K_BLOCK,
            FILL,
            RULE,
            CAPPED,
        )
        if AHEAD:
            scores = coming
        else:
            scores = tl.load(at + tl.minimum(r + R, BLOCK_M - R) * scratch_width)
    return guess, reach


# What changes with a prompt's length or the sparsity is not specialised on: no compiling for each.
@triton.jit(do_not_specialize=["heads", "k_heads", "group", "tiles", "total", "rows", "cols", "q_len", "k_len", "width"])
def _select(
    Q,
    K,
    QUnit,
    KUnit,
    Scratch,
    Budget,
    Counts,
    Indices,
    q_low,
    k_low,
    sqb,
    sqh,
    sqm,
    skb,
    skh,
    skn,
    heads,
    k_heads,
    group,
    tiles,
    total,
    rows,
    cols,
    q_len,
    k_len,
    scale,
    level,
    width,
    Q_BLOCK: tl.constexpr,
    K_BLOCK: tl.constexpr,
    D: tl.constexpr,
    PAD_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    R: tl.constexpr,
    W: tl.constexpr,
    SHARE: tl.constexpr,
    MAX: tl.constexpr,
    RULE: tl.constexpr,
    CAPPED: tl.constexpr,
    AHEAD: tl.constexpr,
    SPLIT: tl.constexpr,
):
    me = tl.program_id(0)
    programs = tl.num_programs(0)
    line = Scratch + me.to(tl.int64) * BLOCK_M * W
    offs_m = tl.arange(0, BLOCK_M)
    offs_n = tl.arange(0, BLOCK_N)
    guess = 0.0
    reach = 1.0
    for turn in range(0, tl.cdiv(total, programs)):
        # back and forth, so that no program always gets the long rows
        tile = turn * programs + tl.where(turn % 2 == 0, me, programs - 1 - me)
        if tile < total:
            head = tile // tiles  # heads one after another: their keys stay in L2
            first = (tiles - 1 - tile % tiles) * BLOCK_M
            b = (head // heads).to(tl.int64)
            h = (head % heads).to(tl.int64) * SHARE
            last = tl.minimum(first + BLOCK_M, rows)
            causal = (tl.minimum(last * Q_BLOCK, q_len) - 1 + k_len - q_len) // K_BLOCK + 1
            m = first + offs_m
            q_base = Q + b * sqb
            k_base = K + b * skb
            if SHARE == 1:
                q, q_rest, q_unit = _queries(q_base + h * sqh, QUnit, q_low, b * heads + h, m, sqm, rows, D, PAD_D, SPLIT)
            for start in range(0, causal, BLOCK_N):
                n = start + offs_n
                if SHARE == 1:
                    hk = h // group
                    s = _dot(
                        q, q_rest, q_unit, k_base + hk * skh, KUnit, k_low, b * k_heads + hk, n, skn, cols, D, PAD_D, SPLIT
                    )
                else:
                    s = tl.full([BLOCK_M, BLOCK_N], -float("inf") if MAX else 0.0, tl.float32)
                    for g in range(h, h + SHARE):
                        hk = g // group
                        q, q_rest, q_unit = _queries(
                            q_base + g * sqh, QUnit, q_low, b * heads * SHARE + g, m, sqm, rows, D, PAD_D, SPLIT
                        )
                        one = _dot(
                            q,
                            q_rest,
                            q_unit,
                            k_base + hk * skh,
                            KUnit,
                            k_low,
                            b * k_heads + hk,
                            n,
                            skn,
                            cols,
                            D,
                            PAD_D,
                            SPLIT,
                        )
                        if MAX:
                            s = tl.maximum(s, one * scale, propagate_nan=tl.PropagateNan.ALL)
                        else:
                            s += one
                if SHARE == 1 or not MAX:
                    s = s * scale  # a mean's share is in it
                tl.store(line + offs_m[:, None] * W + n[None, :], s)
            tl.debug_barrier()  # all scores are written before any row is read
            place = head.to(tl.int64) * rows
            if W >= 512 and causal <= W // 2:
                SHORT: tl.constexpr = 2 * R if 2 * R < BLOCK_M else BLOCK_M
                guess, reach = _select_tile(
                    line,
                    Budget,
                    Counts + place,
                    Indices + place * width,
                    first,
                    rows,
                    q_len,
                    k_len,
                    level,
                    width,
                    guess,
                    reach,
                    W,
                    Q_BLOCK,
                    K_BLOCK,
                    BLOCK_M,
                    SHORT,
                    W // 2,
                    RULE,
                    CAPPED,
                    AHEAD,
                )
            else:
                guess, reach = _select_tile(
                    line,
                    Budget,
                    Counts + place,
                    Indices + place * width,
                    first,
                    rows,
                    q_len,
                    k_len,
                    level,
                    width,
                    guess,
                    reach,
                    W,
                    Q_BLOCK,
                    K_BLOCK,
                    BLOCK_M,
                    R,
                    W,
                    RULE,
                    CAPPED,
                    AHEAD,
                )
            tl.debug_barrier()  # all rows are read before the next tile's scores are written


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
    config: Config | None = None,
) -> BlockIndex:
    """See `attention_kernels.selection.select_from_pooled`; counts: what `kept_counts` returned, or None for the other rules."""
    q_len, k_len, q_block, k_block = shape
    q, k = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k))
    batch, q_heads, rows, dim = q.shape
    cols, heads = k.shape[2], q_heads // share
    folds = share > 1 and combine == "mean" and one_key_head(q_heads, k.shape[1], share)
    if cols > MOST_COLUMNS or dim > 256:
        raise ValueError(f"kernel=triton selects from {MOST_COLUMNS} key blocks and vectors of 256 at most, not {cols}, {dim}")
    wide = triton.next_power_of_2(cols)
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
        q_half, k_half = split(q, k, share if folds else 1)
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
        _select[(programs,)](
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
            cols,
            q_len,
            k_len,
            scale / share if combine == "mean" else scale,
            level,
            width,
            Q_BLOCK=q_block,
            K_BLOCK=k_block,
            D=dim,
            PAD_D=max(16, triton.next_power_of_2(dim)),
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
    return BlockIndex(out_counts, indices, q_block, k_block, q_len, k_len)


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
