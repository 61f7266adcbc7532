"""Attention with skipped tiles in Triton: a FlashAttention loop that branches on what it finds in Q Kᵀ (forward only).

One program owns a query block of one head and walks the key tiles from the first. K is prefetched; whether V is read is known
only after the first product, so its load lies inside the branch.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from attention_kernels.block_index import BlockIndex
from attention_kernels.block_sparse.triton_tuning import describable
from attention_kernels.skip_softmax.rule import SkipRule
from attention_kernels.tiles import power_of_two, prefetch_depth, shared_bytes

FAR = tl.constexpr(1.0e30)
"""Beyond every score: where a row's maximum starts (below), and where that of a row past the end stays (above), so that such a
row never asks for a tile."""
NEVER = -1.0e38
"""The logarithm of threshold 0, below every difference of two scores."""


# Lengths change from call to call and help no address: one compiled kernel serves them all.
@triton.jit(do_not_specialize=["heads", "group", "q_len", "k_len", "cols_total"])
def _forward(
    Q,
    K,
    V,
    Out,
    Counts,
    Indices,
    sqb,
    sqh,
    sqm,
    skb,
    skh,
    skn,
    svb,
    svh,
    svn,
    sob,
    soh,
    som,
    heads,
    group,
    q_len,
    k_len,
    cols_total,
    scale_log2e,
    log2_threshold,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    DESCRIBED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    row = tl.num_programs(0) - 1 - tl.program_id(0)  # the longest rows start first
    b = (tl.program_id(1) // heads).to(tl.int64)
    h = (tl.program_id(1) % heads).to(tl.int64)
    offs_n, offs_d = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    token = row * BLOCK_M + tl.arange(0, BLOCK_M)
    real = token < q_len
    at = token.to(tl.int64)[:, None]
    inside = real[:, None]
    if D != BLOCK_D:
        inside = inside & (offs_d < D)[None, :]
    q = tl.load(Q + b * sqb + h * sqh + at * sqm + offs_d[None, :], mask=inside, other=0.0)
    hk = h // group
    k_from, v_from = K, V
    if not DESCRIBED:
        k_from += b * skb + hk * skh
        v_from += b * svb + hk * svh
    line = Indices + ((b * heads + h) * tl.num_programs(0) + row) * cols_total

    position = token + (k_len - q_len)
    free = (row * BLOCK_M + k_len - q_len) // BLOCK_N  # tiles before the row's own tokens: no mask, and they may be skipped
    end = (tl.minimum(row * BLOCK_M + BLOCK_M, q_len) - 1 + k_len - q_len) // BLOCK_N + 1
    best = tl.where(real, -FAR, FAR)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    count = 0
    for tile in range(free):
        k = _load(k_from, tile, b, hk, skn, k_len, offs_n, offs_d, D, BLOCK_D, BLOCK_N, DESCRIBED, False)
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        top = tl.max(s, 1) * scale_log2e
        if tl.max(top - best, 0) >= log2_threshold:
            v = _load(v_from, tile, b, hk, svn, k_len, offs_n, offs_d, D, BLOCK_D, BLOCK_N, DESCRIBED, False)
            best, total, acc = _update(s, top, v, best, total, acc, scale_log2e, PRECISION)
            tl.store(line + count, tile)
            count += 1
    for tile in tl.range(free, end, num_stages=1):
        cols = tile * BLOCK_N + offs_n
        k = _load(k_from, tile, b, hk, skn, k_len, offs_n, offs_d, D, BLOCK_D, BLOCK_N, DESCRIBED, True)
        v = _load(v_from, tile, b, hk, svn, k_len, offs_n, offs_d, D, BLOCK_D, BLOCK_N, DESCRIBED, True)
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        s = tl.where(cols[None, :] <= position[:, None], s, -float("inf"))
        best, total, acc = _update(s, tl.max(s, 1) * scale_log2e, v, best, total, acc, scale_log2e, PRECISION)
        tl.store(line + count, tile)
        count += 1

    acc = acc / tl.where(real, total, 1.0)[:, None]
    tl.store(Out + b * sob + h * soh + at * som + offs_d[None, :], acc.to(Out.dtype.element_ty), mask=inside)
    tl.store(Counts + (b * heads + h) * tl.num_programs(0) + row, count)


@triton.jit
def _load(
    X,
    tile,
    b,
    hk,
    stride,
    k_len,
    offs_n,
    offs_d,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    DESCRIBED: tl.constexpr,
    BOUND: tl.constexpr,
):
    """Load keys or values [BLOCK_N, BLOCK_D] of a tile; with BOUND some may lie past the last key, and are zero."""
    if DESCRIBED:
        x = tl.reshape(X.load([b.to(tl.int32), hk.to(tl.int32), tile * BLOCK_N, 0]), [BLOCK_N, BLOCK_D])
    else:
        where = X + tl.cast(tile * BLOCK_N, tl.int64) * stride + (offs_n.to(tl.int64)[:, None] * stride + offs_d[None, :])
        if BOUND:
            x = tl.load(where, mask=(tile * BLOCK_N + offs_n < k_len)[:, None] & (offs_d < D)[None, :], other=0.0)
        elif D != BLOCK_D:
            x = tl.load(where, mask=(offs_d < D)[None, :], other=0.0)
        else:
            x = tl.load(where)
    return x


@triton.jit
def _update(s, top, v, best, total, acc, scale_log2e, PRECISION: tl.constexpr):
    """Take one step of the running softmax; `top` are the rows' largest scaled scores, the others are scaled in the
    exponent."""
    high = tl.maximum(best, top)
    p = tl.exp2(s * scale_log2e - high[:, None])
    alpha = tl.exp2(best - high)
    total = total * alpha + tl.sum(p, 1)
    acc = tl.dot(p.to(v.dtype), v, acc * alpha[:, None], input_precision=PRECISION)
    return high, total, acc


def skip_softmax_triton(q: Tensor, k: Tensor, v: Tensor, rule: SkipRule, *, scale: float) -> tuple[Tensor, BlockIndex]:
    """Run `attention_kernels.skip_softmax.skip_softmax_attention` in Triton."""
    pad = power_of_two(q.shape[-1])
    # V has one place. K comes two tiles ahead: where a tile is skipped, nothing else hides the next one's way from L2.
    rows = rule.q_block + rule.k_block
    depth = prefetch_depth(rows, rule.k_block, pad, q.element_size(), shared_bytes(q.device), most=3)
    return run_with(q, k, v, rule, scale=scale, num_warps=8 if rule.q_block == 128 else 4, num_stages=depth)


def run_with(q: Tensor, k: Tensor, v: Tensor, rule: SkipRule, *, scale: float, **options: int) -> tuple[Tensor, BlockIndex]:
    """Run the kernel with the compiler's options (num_warps, num_stages, maxnreg) of the caller's choice, for tuning."""
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    (batch, heads, q_len, dim), (kv_heads, k_len) = q.shape, k.shape[1:3]
    rows, cols = -(-q_len // rule.q_block), -(-k_len // rule.k_block)
    out = torch.empty_like(q)
    counts = torch.empty(batch, heads, rows, dtype=torch.int32, device=q.device)
    indices = torch.zeros(batch, heads, rows, cols, dtype=torch.int32, device=q.device)
    pad = power_of_two(dim)
    hopper = q.is_cuda and torch.cuda.get_device_capability(q.device)[0] == 9
    described = hopper and q.element_size() == 2 and describable(k) and describable(v)
    k_from, v_from = (_descriptor(x, rule.k_block, pad) for x in (k, v)) if described else (k, v)
    with torch.cuda.device_of(q):  # Triton launches on the current device
        _forward[(rows, batch * heads)](
            q,
            k_from,
            v_from,
            out,
            counts,
            indices,
            *q.stride()[:3],
            *k.stride()[:3],
            *v.stride()[:3],
            *out.stride()[:3],
            heads,
            heads // kv_heads,
            q_len,
            k_len,
            cols,
            scale * math.log2(math.e),
            max(NEVER, rule.log * math.log2(math.e)),
            D=dim,
            BLOCK_D=pad,
            BLOCK_M=rule.q_block,
            BLOCK_N=rule.k_block,
            DESCRIBED=described,
            PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
            **options,
        )
    return out, BlockIndex(counts, indices, **rule.grid(q, k))


def _descriptor(x: Tensor, rows: int, pad: int) -> TensorDescriptor:
    return TensorDescriptor(x, list(x.shape), list(x.stride()), [1, 1, rows, pad])
