"""FlashAttention-4's block-sparse kernels under the library's own autograd: Hopper, key blocks of 128.

Its backward pass goes over the key blocks, and takes the lists in that direction: the query blocks of each key block, those
over their own tokens in the list that is masked. They are made here, on the device. The kernel adds dQ up as its programs come,
and dK and dV where query heads share a KV head: two runs differ in the last bits. For 32k tokens, 32 heads and blocks of 128
the lists take 8 MiB, for 128k tokens 128.
"""

from __future__ import annotations

import re
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import Tensor

from attention_kernels.block_index import BlockIndex, causal_blocks, diagonal_start
from attention_kernels.block_sparse.diagonal import per_query_head, split_diagonal
from attention_kernels.optional import problem_of
from attention_kernels.transposed_index import query_lists

PACKAGE = "flash-attn-4"
SINCE = (4, 0, 0, 27)
"""The first release, of 19 August 2026, whose backward pass waits on this path for the sums that it needs; older ones also gave
wrong gradients at head dim 64. Major, minor, patch, beta."""
FINAL = 1 << 20
"""Stands for the number of the beta in a release that is none."""
K_BLOCK = 128
MOST_DIM = 128
"""Head dims up to which a tile of the backward pass has K_BLOCK keys."""


def flash4_gradient_reason(
    *, device: torch.device, dtype: torch.dtype, head_dim: int, q_block: int, k_block: int, shared: int
) -> str | None:
    """Return None where the kernel, which runs here, has a gradient, else the reason why not."""
    if torch.cuda.get_device_capability(device)[0] != 9:
        return "its backward pass runs on GPUs of compute capability 9.x only"
    if k_block != K_BLOCK:
        return f"its backward pass takes key blocks of {K_BLOCK}, not {k_block}"
    if head_dim > MOST_DIM:
        return f"its backward pass takes head dims up to {MOST_DIM}, not {head_dim}"
    rows = 128 if head_dim <= 64 else 64  # of a tile of the backward pass, which a query block holds
    if q_block % rows:
        return f"at head dim {head_dim} its backward pass takes query blocks that are multiples of {rows}, not {q_block}"
    return _release_problem()


@lru_cache
def _release_problem() -> str | None:
    """Return why the installed release has no backward pass that can be trusted; None where it has."""
    if problem := problem_of("flash_attn.cute.interface", "flash_attn_func"):
        return problem
    try:
        release = version(PACKAGE)
    except PackageNotFoundError:
        release = "one of another name"
    parts = re.match(r"(\d+)\.(\d+)\.(\d+)(?:b(\d+))?", release)
    if parts and tuple(int(part) if part else FINAL for part in parts.groups()) >= SINCE:
        return None
    return f"its backward pass needs {PACKAGE} 4.0.0b{SINCE[-1]} or later, not {release}"


def block_sparse_flash4_with_gradient(q: Tensor, k: Tensor, v: Tensor, index: BlockIndex, *, scale: float) -> Tensor:
    """Run `attention_kernels.block_sparse.block_sparse_attention` with FlashAttention-4, full rows too, so that the output has
    a gradient. The lists of both directions are made now, as the library asks for both in its forward pass."""
    from flash_attn.cute.block_sparsity import BlockSparseTensorsTorch
    from flash_attn.cute.interface import flash_attn_func

    from attention_kernels.block_sparse.flash4_mask import causal_mask

    heads, size = q.shape[1], (index.q_block, index.k_block)
    index = index.with_all_lists()
    with torch.no_grad():
        lists = split_diagonal(per_query_head(index, heads))
        own_counts, own = own_query_blocks(index, heads)
        counts, blocks = (x.repeat_interleave(heads // index.heads, 1) for x in query_lists(index))
    by_query = BlockSparseTensorsTorch(
        mask_block_cnt=lists.masked_counts,
        mask_block_idx=lists.masked,
        full_block_cnt=lists.full_counts,
        full_block_idx=lists.full,
        block_size=size,
    )
    by_key = BlockSparseTensorsTorch(
        mask_block_cnt=own_counts,
        mask_block_idx=own,
        full_block_cnt=counts,
        full_block_idx=blocks,
        block_size=size,
    )
    with torch.cuda.device_of(q):
        out = flash_attn_func(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            softmax_scale=scale,
            mask_mod=causal_mask(1),
            block_sparse_tensors=by_query,
            block_sparse_tensors_bwd=by_key,
            pack_gqa=False,
        )
    return (out[0] if isinstance(out, tuple) else out).transpose(1, 2)


def own_query_blocks(index: BlockIndex, heads: int) -> tuple[Tensor, Tensor]:
    """Return counts int32 [B, heads, Nk] and query blocks int32 [B, heads, Nk, width], ascending: those that keep a key block
    as one over their own tokens. It follows from the lengths alone, and is kept for the next call: read only."""
    shape = (index.q_len, index.k_len, index.q_block, index.k_block)
    return _own_query_blocks(index.counts.shape[0], heads, shape, index.counts.device)


@lru_cache(maxsize=4)
def _own_query_blocks(batch: int, heads: int, shape: tuple[int, int, int, int], device: torch.device) -> tuple[Tensor, Tensor]:
    _, k_len, q_block, k_block = shape
    with torch.inference_mode(False):
        cols = torch.arange(-(-k_len // k_block), device=device)
        # Both rise from row to row: the rows of a key block lie side by side
        causal, start = causal_blocks(*shape, device), diagonal_start(*shape, device)
        first = torch.searchsorted(causal, cols, right=True)
        counts = (torch.searchsorted(start, cols, right=True) - first).clamp(min=0)
        width = -(-(k_block - 1) // q_block) + 1  # so many may begin or end in one block
        steps = torch.arange(min(width, len(causal)), device=device)
        blocks = torch.where(steps < counts[:, None], first[:, None] + steps, 0)
        return (
            counts.to(torch.int32).expand(batch, heads, -1).contiguous(),
            blocks.to(torch.int32).expand(batch, heads, -1, -1).contiguous(),
        )
