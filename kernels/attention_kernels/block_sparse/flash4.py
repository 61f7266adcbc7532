"""FlashAttention-4's block-sparse kernel (package flash-attn-4): Hopper, and Blackwell of the data centre.

A tile is 128 query rows on Hopper, 256 on Blackwell. Finer query blocks leave half of a tile's rate unused on Hopper (a tile
of 64 rows) and are refused by the library on Blackwell. Where the heads of a GQA group share one index, their rows are packed
into one sequence instead, token by token: G heads × 64 rows fill the tile. The library's own packing (pack_gqa) can't do
that: it cuts a tile of packed rows out of one query block's tokens, and its tile may not hold more rows than a query block.
The packed copy of q and the unpacking of the output move 4·B·Hq·Q·D elements: 1.4 ms at 3 TB/s, for
128k tokens and 32 heads of 128 in bfloat16.

Scheduling is the library's: with a mask_mod it launches one program a tile, shortest rows first. Its longest-first order
belongs to causal=True, which masks every block, not only the diagonal ones; persistent programs belong to Blackwell.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from attention_kernels.block_index import BlockIndex
from attention_kernels.block_sparse.diagonal import per_query_head, split_diagonal
from attention_kernels.optional import problem_of

LIBRARY = ("flash_attn.cute.interface", "_flash_attn_fwd")
"""The module and the function that are called."""
TILE_ROWS = {9: 128, 10: 256}
"""Query rows of a full tile, by major compute capability. Elsewhere there is no such kernel: on Ampere the library takes the
block lists and silently ignores them (flash-attention issue 2897)."""


def flash4_reason(
    *, device: torch.device, dtype: torch.dtype, head_dim: int, q_block: int, k_block: int, shared: int
) -> str | None:
    """Return None where the kernel runs, else the reason why not. shared: query heads that have one index."""
    major = torch.cuda.get_device_capability(device)[0] if device.type == "cuda" else 0
    if major not in TILE_ROWS:
        return f"it runs on GPUs of compute capability {' and '.join(f'{m}.x' for m in TILE_ROWS)} only"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"it takes float16 and bfloat16, not {dtype}"
    most = 256 if major == 9 else 128
    if not 8 <= head_dim <= most or head_dim % 8:
        return f"it takes head dims that are multiples of 8 up to {most}, not {head_dim}"
    # The library's key tile must be the key block: 64 always is one, 128 where two of them fit beside the queries.
    key_blocks = (128,) if major == 10 else (64,) if head_dim > 128 else (64, 128)
    if k_block not in key_blocks:
        return f"at head dim {head_dim} it takes key blocks of {' and '.join(map(str, key_blocks))}, not {k_block}"
    if major == 9 and q_block not in (64, 128):
        return f"it takes query blocks of 64 and 128, not {q_block}"
    rows = q_block * packed_heads(major, q_block, shared)
    if major == 10 and rows % TILE_ROWS[10]:
        return f"a tile is {TILE_ROWS[10]} query rows: query blocks of {q_block} need an index that heads share to fill it"
    return None if _installed() else problem_of(*LIBRARY) or "its package is not installed"


def packed_heads(major: int, q_block: int, shared: int) -> int:
    """Return how many query heads to pack into one sequence: all that share an index, where one head's query block fills no
    tile and theirs together do; else 1."""
    rows = TILE_ROWS[major]
    return shared if q_block % rows and q_block * shared % rows == 0 else 1


def block_sparse_flash4(q: Tensor, k: Tensor, v: Tensor, index: BlockIndex, *, scale: float) -> Tensor:
    """Run `attention_kernels.block_sparse.block_sparse_attention` with FlashAttention-4."""
    from flash_attn.cute.block_sparsity import BlockSparseTensorsTorch
    from flash_attn.cute.interface import _flash_attn_fwd

    from attention_kernels.block_sparse.flash4_mask import causal_mask

    heads = q.shape[1]
    group = packed_heads(torch.cuda.get_device_capability(q.device)[0], index.q_block, heads // index.counts.shape[1])
    lists = split_diagonal(index if group > 1 else per_query_head(index, heads))
    blocks = BlockSparseTensorsTorch(
        mask_block_cnt=lists.masked_counts,
        mask_block_idx=lists.masked,
        full_block_cnt=lists.full_counts,
        full_block_idx=lists.full,
        block_size=(group * index.q_block, index.k_block),
    )
    with torch.cuda.device_of(q):
        out = _flash_attn_fwd(
            pack_heads(q, group),
            k.transpose(1, 2),
            v.transpose(1, 2),
            softmax_scale=scale,
            mask_mod=causal_mask(group),
            block_sparse_tensors=blocks,
            pack_gqa=False,
        )[0]
    return unpack_heads(out, group)


def pack_heads(q: Tensor, group: int) -> Tensor:
    """Turn [B, G·H, Q, D] into [B, Q·G, H, D]: the G heads of a group follow each other token by token. A view where G is 1."""
    if group == 1:
        return q.transpose(1, 2)
    batch, heads, tokens, dim = q.shape
    grouped = q.unflatten(1, (heads // group, group)).transpose(2, 3)
    return grouped.reshape(batch, heads // group, tokens * group, dim).transpose(1, 2)


def unpack_heads(out: Tensor, group: int) -> Tensor:
    """Turn [B, Q·G, H, D] into [B, G·H, Q, D], the inverse of `pack_heads`."""
    if group == 1:
        return out.transpose(1, 2)
    return out.unflatten(1, (-1, group)).permute(0, 3, 2, 1, 4).flatten(1, 2)


@lru_cache
def _installed() -> bool:
    """Return whether the library is there and can be imported."""
    return problem_of(*LIBRARY) is None
