# mypy: disable-error-code="no-untyped-def"
"""dK and dV of block-sparse attention in Triton: one program owns a key block of a KV head, or a part of one.

It walks the query blocks that list it (`attention_kernels.transposed_index`), those of all query heads of the KV head one after
the other in one loop, and then the queries inside or near the block, which need the causal mask. Everything is held transposed,
keys by queries, so that P and dS are left operands of dV += P·dO and dK += dS·Q as they come out of their products, without a
way through shared memory. A sum has one order: two runs give the same bits.

Key blocks that most rows keep, the first one say, start first and are cut into parts; `key_tasks` says why. What the parts sum
up lies in float32 until `add_parts` puts it together, in one order.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from attention_kernels.block_index import BlockIndex
from attention_kernels.block_sparse.backward.combine_kernel import add_parts
from attention_kernels.block_sparse.backward.key_tasks import PARTS, key_tasks
from attention_kernels.block_sparse.triton_kernel import describe
from attention_kernels.block_sparse.triton_tuning import Tile
from attention_kernels.transposed_index import ROW_BITS, TransposedIndex


# Lengths change from call to call and help no address: one compiled kernel serves them all.
@triton.jit(do_not_specialize=["kv_heads", "lists", "cols", "room", "slots", "q_len", "k_len"])
def _keys(
    Q,
    K,
    V,
    Grad,
    DK,
    DV,
    Lse,
    Delta,
    Starts,
    Entries,
    Order,
    Splits,
    Part,
    sqb,
    sqh,
    sqm,
    skb,
    skh,
    skn,
    svb,
    svh,
    svn,
    sgb,
    sgh,
    sgm,
    sdkb,
    sdkh,
    sdkn,
    sdvb,
    sdvh,
    sdvn,
    kv_heads,
    lists,
    cols,
    room,
    slots,
    q_len,
    k_len,
    scale,
    scale_log2e,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    Q_BLOCK: tl.constexpr,
    K_BLOCK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SHARED: tl.constexpr,
    PARTS: tl.constexpr,
    ROW_BITS: tl.constexpr,
    DESCRIBED: tl.constexpr,
    EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    UNIT: tl.constexpr = min(BLOCK_M, Q_BLOCK)  # queries side by side; a step has BLOCK_M // UNIT units
    JOIN: tl.constexpr = BLOCK_M // UNIT
    SPLIT: tl.constexpr = Q_BLOCK // UNIT
    PIECES: tl.constexpr = SHARED * SPLIT  # units that an entry stands for: the heads that share its list, the parts of a block
    TILES: tl.constexpr = K_BLOCK // BLOCK_N  # programs that a key block is cut into, or as many for each part of its sums
    task = tl.program_id(0) // TILES
    splits = tl.load(Splits)
    split = task < slots * PARTS
    number = tl.where(split, task // PARTS, task - slots * PARTS)
    if split != (number < splits):
        return
    place = tl.load(Order + number)
    block = place % cols
    tile = tl.program_id(0) % TILES
    col0 = block * K_BLOCK + tile * BLOCK_N
    b = place // cols // kv_heads
    hk = place // cols % kv_heads
    if col0 >= k_len:  # the last key block is short, and this is a tile past its end
        return
    part = tl.where(split, task % PARTS, 0)
    parts = tl.where(split, PARTS, 1)
    col = col0 + tl.arange(0, BLOCK_N)
    offs_m = tl.arange(0, BLOCK_M)
    offs_d = tl.arange(0, BLOCK_D)
    keep = (col < k_len)[:, None] & (offs_d < D)[None, :]
    b_ = b.to(tl.int64)
    hk_ = hk.to(tl.int64)
    col_ = col.to(tl.int64)
    k = tl.load(K + (b_ * skb + hk_ * skh + col_ * skn)[:, None] + offs_d[None, :], mask=keep, other=0.0)
    v = tl.load(V + (b_ * svb + hk_ * svh + col_ * svn)[:, None] + offs_d[None, :], mask=keep, other=0.0)

    line = (b * kv_heads + hk).to(tl.int64)
    starts = Starts + line * (cols * lists + 1) + block * lists
    begin = tl.load(starts)
    units = (tl.load(starts + lists) - begin) * PIECES
    entries = Entries + line * room + begin
    group = lists * SHARED  # query heads of the KV head
    heads = kv_heads * group
    dk = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    dv = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    turns = tl.cdiv(units, JOIN)
    turn = turns * part // parts
    ahead = tl.load(entries + turn // PIECES, mask=units > 0, other=0)
    for i in range(turn, turns * (part + 1) // parts):
        if JOIN == 1:
            entry = ahead  # known a turn early: the addresses of Q and dO don't wait for the list
            ahead = tl.load(entries + tl.minimum(i + 1, units - 1) // PIECES)
            head = hk * group + (entry >> ROW_BITS) * SHARED + i % PIECES // SPLIT
            token = (entry & ((1 << ROW_BITS) - 1)) * Q_BLOCK + i % SPLIT * UNIT
        else:
            unit = i * JOIN + offs_m // UNIT
            entry = tl.load(entries + unit // PIECES, mask=unit < units, other=0)
            head = hk * group + (entry >> ROW_BITS) * SHARED + unit % PIECES
            token = tl.where(unit < units, (entry & ((1 << ROW_BITS) - 1)) * Q_BLOCK + offs_m % UNIT, q_len)
        BOUND: tl.constexpr = JOIN > 1 or not EVEN
        q = _load_queries(Q, b, head, token, sqb, sqh, sqm, q_len, offs_m, offs_d, D, BLOCK_D, BLOCK_M, JOIN, DESCRIBED, BOUND)
        grad = _load_queries(
            Grad, b, head, token, sgb, sgh, sgm, q_len, offs_m, offs_d, D, BLOCK_D, BLOCK_M, JOIN, DESCRIBED, BOUND
        )
        lse = _load_sums(Lse, b, head, token, heads, q_len, offs_m, JOIN, BOUND)
        delta = _load_sums(Delta, b, head, token, heads, q_len, offs_m, JOIN, BOUND)
        s = tl.dot(k, tl.trans(q), input_precision=PRECISION)
        dp = tl.dot(v, tl.trans(grad), input_precision=PRECISION)
        p = tl.exp2(s * scale_log2e - lse[None, :])
        dv = tl.dot(p.to(grad.dtype), grad, dv, input_precision=PRECISION)
        ds = p * (dp - delta[None, :])
        dk = tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION)

    # Queries of the rows that keep this block as one over their own tokens: from the one at its first key on, to the end of
    # the last row that begins in it. They lie side by side, whatever the rows are.
    offset = k_len - q_len
    first = tl.maximum(col0 - offset, 0)
    rows = tl.maximum((block + 1) * K_BLOCK - offset + Q_BLOCK - 1, 0) // Q_BLOCK
    stop = tl.minimum(rows * Q_BLOCK, q_len)
    steps = tl.cdiv(tl.maximum(stop - first, 0), BLOCK_M)
    steps = tl.where(part < parts - 1, 0, steps)  # the last part sums these up
    for i in tl.range(0, steps * group, num_stages=1):
        head = hk * group + i // steps
        token = first + i % steps * BLOCK_M
        q = _load_queries(Q, b, head, token, sqb, sqh, sqm, q_len, offs_m, offs_d, D, BLOCK_D, BLOCK_M, 1, DESCRIBED, True)
        grad = _load_queries(
            Grad, b, head, token, sgb, sgh, sgm, q_len, offs_m, offs_d, D, BLOCK_D, BLOCK_M, 1, DESCRIBED, True
        )
        lse = _load_sums(Lse, b, head, token, heads, q_len, offs_m, 1, True)
        delta = _load_sums(Delta, b, head, token, heads, q_len, offs_m, 1, True)
        s = tl.dot(k, tl.trans(q), input_precision=PRECISION)
        dp = tl.dot(v, tl.trans(grad), input_precision=PRECISION)
        at = token + offs_m
        visible = (col[:, None] <= (at + offset)[None, :]) & (at < stop)[None, :]
        p = tl.exp2(tl.where(visible, s * scale_log2e - lse[None, :], -float("inf")))
        dv = tl.dot(p.to(grad.dtype), grad, dv, input_precision=PRECISION)
        ds = p * (dp - delta[None, :])
        dk = tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION)

    if split:
        where = Part + ((number * PARTS + part) * 2 * K_BLOCK + tile * BLOCK_N).to(tl.int64) * D
        where = where + tl.arange(0, BLOCK_N)[:, None] * D + offs_d[None, :]
        tl.store(where, dk * scale, mask=(offs_d < D)[None, :])
        tl.store(where + K_BLOCK * D, dv, mask=(offs_d < D)[None, :])
        return
    to_k = DK + (b_ * sdkb + hk_ * sdkh + col_ * sdkn)[:, None] + offs_d[None, :]
    to_v = DV + (b_ * sdvb + hk_ * sdvh + col_ * sdvn)[:, None] + offs_d[None, :]
    tl.store(to_k, (dk * scale).to(DK.dtype.element_ty), mask=keep)
    tl.store(to_v, dv.to(DV.dtype.element_ty), mask=keep)


@triton.jit
def _load_queries(
    X,
    b,
    head,
    token,
    sxb,
    sxh,
    sxm,
    q_len,
    offs_m,
    offs_d,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    JOIN: tl.constexpr,
    DESCRIBED: tl.constexpr,
    BOUND: tl.constexpr,
):
    """Load rows of Q or dO [BLOCK_M, BLOCK_D]: side by side from `token` of `head` on (JOIN == 1), else each by its own; with
    BOUND some may lie past the last query, and are zero."""
    if DESCRIBED:
        x = tl.reshape(X.load([b, head, token, 0]), [BLOCK_M, BLOCK_D])
    else:
        if JOIN == 1:
            rows = token + offs_m
            base = X + b.to(tl.int64) * sxb + head.to(tl.int64) * sxh + token.to(tl.int64) * sxm
            where = base + (offs_m.to(tl.int64)[:, None] * sxm + offs_d[None, :])
        else:
            rows = token
            line = b.to(tl.int64) * sxb + head.to(tl.int64) * sxh + token.to(tl.int64) * sxm
            where = X + (line[:, None] + offs_d[None, :])
        if BOUND:
            x = tl.load(where, mask=(rows < q_len)[:, None] & (offs_d < D)[None, :], other=0.0)
        elif D != BLOCK_D:
            x = tl.load(where, mask=(offs_d < D)[None, :], other=0.0)
        else:
            x = tl.load(where)
    return x


@triton.jit
def _load_sums(X, b, head, token, heads, q_len, offs_m, JOIN: tl.constexpr, BOUND: tl.constexpr):
    """Load a number a query, of X float32 [B, Hq, Q], for the same rows; zero past the last query, where Q and dO are too."""
    rows = token + offs_m if JOIN == 1 else token
    where = X + (b * heads + head).to(tl.int64) * q_len + rows
    if BOUND:
        x = tl.load(where, mask=rows < q_len, other=0.0)
    else:
        x = tl.load(where)
    return x


def key_gradients(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lse: Tensor,
    delta: Tensor,
    grad: Tensor,
    index: BlockIndex,
    transposed: TransposedIndex,
    *,
    scale: float,
    tile: Tile,
) -> tuple[Tensor, Tensor]:
    """Return dK and dV [B, Hkv, K, D]. lse, delta: of the pass over the queries, float32 [B, Hq, Q], contiguous; the last
    dimension of all others is. Every element is written: a key that no query sees gets zeros. Raises ValueError for a tile
    of more keys than a key block has, or with descriptors of more queries than a query block."""
    if tile.cols > index.k_block or (tile.described and tile.rows > index.q_block):
        raise ValueError(f"{tile} does not fit query blocks of {index.q_block} and key blocks of {index.k_block}")
    heads, q_len, dim = q.shape[1:]
    kv_heads, k_len = k.shape[1:3]
    dk, dv = torch.empty_like(k), torch.empty_like(v)
    pad, cols = triton.next_power_of_2(dim), -(-k_len // index.k_block)
    order, splits, slots = key_tasks(transposed, index.heads // kv_heads)
    part = torch.empty(slots * PARTS, 2, index.k_block, dim, dtype=torch.float32, device=q.device)
    q_from, g_from = (describe(x, tile.rows, pad) for x in (q, grad)) if tile.described else (q, grad)
    with torch.cuda.device_of(q):  # Triton launches on the current device
        _keys[((order.numel() + slots * PARTS) * (index.k_block // tile.cols),)](
            q_from,
            k,
            v,
            g_from,
            dk,
            dv,
            lse,
            delta,
            transposed.starts,
            transposed.entries,
            order,
            splits,
            part,
            *q.stride()[:3],
            *k.stride()[:3],
            *v.stride()[:3],
            *grad.stride()[:3],
            *dk.stride()[:3],
            *dv.stride()[:3],
            kv_heads,
            index.heads // kv_heads,
            cols,
            transposed.entries.shape[-1],
            slots,
            q_len,
            k_len,
            scale,
            scale * math.log2(math.e),
            D=dim,
            BLOCK_D=pad,
            Q_BLOCK=index.q_block,
            K_BLOCK=index.k_block,
            BLOCK_M=tile.rows,
            BLOCK_N=tile.cols,
            SHARED=heads // index.heads,
            PARTS=PARTS,
            ROW_BITS=ROW_BITS,
            DESCRIBED=tile.described,
            EVEN=q_len % index.q_block == 0,
            PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
    add_parts(part, dk, dv, order, splits, slots)
    return dk, dv
