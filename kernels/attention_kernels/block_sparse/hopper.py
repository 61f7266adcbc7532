"""Block-sparse attention on Hopper GPUs: the host's side of `hopper_kernel`.

Full rows are cut into parts of their keys, which are dealt out among the tiles of all other rows: the work is that of any index
of their density. What they add is a second launch, which combines the parts (kept in the inputs' type), what a tile costs
beside its steps, and uneven turns: programs take tiles in turns, and one with a long part has no fewer of them. On an H200
(Llama-3.1-8B's heads, blocks of 128, density 0.1) two full rows of 32k in two parts of 128 steps each took 13.6 % longer than
none. Dealing out tiles on paper, 1.55 µs a step and 2.6 µs a tile, gives 13.4 %, and in 16 parts 2 %.
"""

from __future__ import annotations

import math
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor

from attention_kernels.block_index import BlockIndex, causal_blocks
from attention_kernels.block_sparse.triton_tuning import describable
from attention_kernels.optional import Unusable, load

ROWS = 128
"""Query rows of a tile: q_block × the query heads that are packed into it."""
HEAD_DIMS = (64, 128, 256)
BLOCKS = (16, 32, 64, 128)
LONGEST_PART = 16
"""Steps of a part of a full row, which is about what other rows take; but for very long rows: of MOST_PARTS parts."""
MOST_PARTS = 64
"""Parts of a full row. Each is written in the inputs' type and read once more."""
NEAR = 32 << 20
"""Bytes of keys and values to work on at a time, of an L2 of 50 MB."""


def hopper_reason(
    *, device: torch.device, dtype: torch.dtype, head_dim: int, q_block: int, k_block: int, shared: int
) -> str | None:
    """Return None where the kernel runs, else the reason why not. shared: query heads that have one index."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device)[0] != 9:
        return "it runs on Hopper GPUs (compute capability 9.0) only"
    if not _has_gluon():
        return "it needs a triton with Gluon, 3.6 or newer"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"it takes float16 and bfloat16, not {dtype}"
    if head_dim not in HEAD_DIMS:
        return f"it takes head dims {', '.join(map(str, HEAD_DIMS))}, not {head_dim}"
    if k_block not in BLOCKS or (head_dim == 256 and k_block == 128):
        return f"at head dim {head_dim} it takes key blocks of 16, 32, 64{'' if head_dim == 256 else ' and 128'}, not {k_block}"
    if q_block not in BLOCKS:
        return f"it takes query blocks of {', '.join(map(str, BLOCKS))}, not {q_block}"
    pack = ROWS // q_block
    if shared % pack:
        return (
            f"a tile is {ROWS} query rows: query blocks of {q_block} need an index that a multiple of {pack} query heads share"
        )
    return None


@lru_cache
def _has_gluon() -> bool:
    """Say whether triton is there, and 3.6 or newer: what came before has no Gluon, or not all that the kernel uses."""
    try:
        version = load("triton", "__version__")
    except Unusable:
        return False
    return tuple(map(int, version.split(".")[:2])) >= (3, 6)


def block_sparse_hopper(q: Tensor, k: Tensor, v: Tensor, index: BlockIndex, *, scale: float) -> Tensor:
    """Run `attention_kernels.block_sparse.block_sparse_attention` on `hopper_kernel`, full rows in parts among all others.
    Raises ValueError for a scale that is not positive."""
    return _launch(q, k, v, index, scale, _config(q.shape[-1]))


def _config(dim: int) -> dict[str, Any]:
    """Return the keys of a step, slots of keys and values, and where queries and output live."""
    if dim == 256:  # queries and accumulator would not fit into registers, queries and output not both into shared memory
        return {"N": 64, "SLOTS": 5, "Q_IN_REGISTERS": False, "OWN_OUT": False}
    return {"N": 128, "SLOTS": 5 if dim == 128 else 8, "Q_IN_REGISTERS": True, "OWN_OUT": True}


def _launch(q: Tensor, k: Tensor, v: Tensor, index: BlockIndex, scale: float, config: dict[str, Any]) -> Tensor:
    from attention_kernels.block_sparse.hopper_kernel import block_sparse_hopper_kernel
    from attention_kernels.full_rows.combine_kernel import combine_parts

    if not scale > 0:
        raise ValueError(
            f"scale={scale} must be positive: kernel=hopper takes a row's maximum before it scales; use kernel=sdpa"
        )
    q, k, v = (_addressable(x) for x in (q, k, v))
    batch, heads, q_len, dim = q.shape
    out = torch.empty_like(q)
    counts, indices = index.counts, index.indices
    if counts.stride(-1) != 1 or indices.stride(-1) != 1:
        counts, indices = counts.contiguous(), indices.contiguous()
    pack, listed, kv_heads = ROWS // index.q_block, index.listed_rows, k.shape[1]
    units = batch * heads // pack
    splits = full_row_splits(index, units, config["N"], _processors(q.device)) if index.full_rows else 1
    parts = index.full_rows * splits
    part, sizes = out, counts  # never read
    if splits > 1:
        part = torch.empty(batch, heads, parts * index.q_block, dim, dtype=q.dtype, device=q.device)
        sizes = torch.empty(batch * heads, parts, index.q_block, dtype=torch.float32, device=q.device)
    tiles = units * (listed + parts)
    query_rows = min(index.q_block, 64)
    described = ((q, query_rows), (k, index.k_block), (v, index.k_block), (out, query_rows), (part, query_rows))
    with torch.cuda.device_of(q):  # Triton launches on the current device
        block_sparse_hopper_kernel[(min(tiles, _processors(q.device)),)](
            *(_descriptor(x, rows) for x, rows in described),
            counts,
            indices,
            _block_numbers(-(-k.shape[2] // index.k_block), q.device) if index.full_rows else indices,
            sizes,
            *counts.stride()[:2],
            *indices.stride()[:3],
            tiles,
            listed + parts,
            listed,
            splits,
            heads // kv_heads // pack,
            kv_heads,
            _bundle(k),
            k.shape[2] - q_len,
            scale * math.log2(math.e),
            QB=index.q_block,
            KB=index.k_block,
            D=dim,
            PACK=pack,
            SHARED=counts.shape[1] != heads,
            FULL=index.full_rows > 0,
            SPLIT=splits > 1,
            num_warps=4,
            **config,
        )
    if splits > 1:
        by_head = part.view(*sizes.shape, dim)
        combine_parts(by_head, sizes, out[:, :, index.listed_queries :], q_block=index.q_block, splits=splits)
    return out


def full_row_splits(index: BlockIndex, units: int, step: int, programs: int) -> int:
    """Return into how many parts each full row is cut, so that no program works through one alone while others have nothing to
    do, and no part is much longer than other rows are. units: tiles of a row; step: keys that a program takes at a time."""
    from attention_kernels.decode.splits import split_count  # imported late: decoding imports this package

    shape = (index.q_len, index.k_len, index.q_block, index.k_block)
    blocks = _causal_of_row(*shape, index.listed_rows)  # of the shortest full row: a part has a block at least
    steps = -(-blocks * index.k_block // step)
    to_fill = split_count(units * index.full_rows, min(blocks, steps), programs)
    return max(to_fill, min(MOST_PARTS, -(-steps // LONGEST_PART)))


@lru_cache(maxsize=256)
def _causal_of_row(q_len: int, k_len: int, q_block: int, k_block: int, row: int) -> int:
    return int(causal_blocks(q_len, k_len, q_block, k_block)[row])


def _block_numbers(count: int, device: torch.device) -> Tensor:
    """Return int32 0, 1, 2, …, at least `count` of them."""
    return _numbers(1 << (count - 1).bit_length(), device)


@cache  # of a few sizes, each kept for good: a CUDA graph reads them by their address
def _numbers(count: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.arange(count, dtype=torch.int32, device=device)


def _bundle(k: Tensor) -> int:
    """Return how many KV heads have their tiles run side by side: as many as L2 holds the keys and values of.

    Rows of a short prompt differ much in length within one turn of all programs; those of several heads fill it with rows of
    one length.
    """
    heads = k.shape[0] * k.shape[1]
    most = max(1, NEAR // (2 * k.shape[2] * k.shape[3] * k.element_size()))
    return max(n for n in range(1, min(most, heads) + 1) if heads % n == 0)


def _addressable(x: Tensor) -> Tensor:
    """Return a tensor that TMA can read, a copy where x isn't; `contiguous` would hand back x itself where it starts off 16
    bytes, or has an odd stride in a dimension of one element."""
    return x if describable(x) else x.clone(memory_format=torch.contiguous_format)


def _descriptor(x: Tensor, rows: int) -> Any:
    """Return a TMA descriptor of [B, H, N, D] for copies of `rows` tokens by 64 elements."""
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    return TensorDescriptor(x, list(x.shape), list(x.stride()), [1, 1, rows, 64], _layout())


@lru_cache
def _layout() -> Any:
    """Return the layout of rows of 128 bytes, swizzled as wgmma reads them. Made once, as that takes longer than a launch."""
    from triton.experimental.gluon.language import NVMMASharedLayout

    return NVMMASharedLayout(128, 16, 4)


@lru_cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count
