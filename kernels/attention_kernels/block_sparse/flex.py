"""torch's flex_attention over a BlockMask made from the BlockIndex: a Triton kernel on CUDA, a C++ one on a CPU.

Compiled at the first call of a shape (seconds on a GPU, more on a CPU). On a GPU prompts are padded to a few lengths (5,120,
6,144, 7,168, 8,192, 10,240, …), each with a kernel of its own; padding has no blocks, and costs its copy. On a CPU lengths that
are multiples of 128 get a kernel each, without bounds checks, and all others share one that takes any length.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from attention_kernels.block_index import BlockIndex
from attention_kernels.block_sparse.diagonal import per_query_head, split_diagonal

ALIGNED = 128
"""Lengths that are multiples of it let the CPU's kernel drop its bounds checks."""
MOST_KERNELS = 256
"""Kernels that one process may compile of each kind; torch's own limit of 8 is soon reached in a sweep over lengths. Beyond
it the call fails: it never falls back to flex_attention's dense form."""


def flex_reason(
    *, device: torch.device, dtype: torch.dtype, head_dim: int, q_block: int, k_block: int, shared: int
) -> str | None:
    """Return None where the kernel runs, else the reason why not. shared doesn't matter: each head gets its list."""
    if device.type not in ("cuda", "cpu"):
        return f"it runs on CUDA and on a CPU, not on {device.type}"
    if dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return f"it takes float16, bfloat16 and float32, not {dtype}"
    if q_block % 16 or k_block % 16:
        return f"it takes blocks that are multiples of 16, not {q_block} and {k_block}"
    if not 16 <= head_dim <= 256:
        return f"it takes head dims from 16 to 256, not {head_dim}"
    if device.type == "cpu" and not _cpu_compiler():
        return "on a CPU it needs a C++ compiler and AVX2"
    return None


def block_sparse_flex(q: Tensor, k: Tensor, v: Tensor, index: BlockIndex, *, scale: float) -> Tensor:
    """Run `attention_kernels.block_sparse.block_sparse_attention` with flex_attention. Forward only."""
    q, k, v = (x.detach() for x in (q, k, v))
    q_len, k_len, dim = q.shape[2], k.shape[2], q.shape[3]
    attend, lengths = _aligned(), (q_len, k_len)
    if q.device.type != "cpu":
        # A kernel for any length, as on a CPU, gave wrong rows on CUDA (torch 2.11) after calls of other block sizes
        lengths = padded_length(q_len), padded_length(k_len)
        q, k, v = _pad(q, lengths[0]), _pad(k, lengths[1]), _pad(v, lengths[1])
    elif q_len % ALIGNED or k_len % ALIGNED:
        attend = _ragged()
    options = kernel_options(q.device, q.dtype, dim, index.q_block, index.k_block)
    # The template takes the scale as a constant, where torch would make a float an input of the graph.
    with torch.no_grad(), torch._dynamo.config.patch(recompile_limit=MOST_KERNELS, specialize_float=True):
        out: Tensor = attend(
            q, k, v, block_mask(index, q.shape[1], lengths), scale, options, f"{index.q_block} {index.k_block}"
        )
    return out[:, :, :q_len]


def padded_length(length: int) -> int:
    """Return the next length that gets a kernel on a GPU: a multiple of 128, and of an eighth of the next power of two."""
    step = max(ALIGNED, 1 << (length - 1).bit_length() >> 3)
    return -(-length // step) * step


def _pad(x: Tensor, length: int) -> Tensor:
    return x if x.shape[2] == length else torch.nn.functional.pad(x, (0, 0, 0, length - x.shape[2]))


def block_mask(index: BlockIndex, heads: int, lengths: tuple[int, int] | None = None) -> Any:
    """Return the BlockMask of an index, for `heads` query heads, and for queries and keys of `lengths` where they are padded at
    their end: what is added has no blocks and is in the future of all. Nothing of size Q × K is made, and nothing waits for the
    device."""
    from torch.nn.attention.flex_attention import BlockMask

    q_len, k_len = lengths or (index.q_len, index.k_len)
    # flex_attention finds a query head's list by h modulo the lists, where a GQA group is h divided by its size: so each
    # head gets one. Both lists are equally wide, as older releases step through them with one stride.
    lists = split_diagonal(per_query_head(index, heads), _width(index, k_len))
    more = -(-q_len // index.q_block) - index.counts.shape[-1]
    counts = (torch.nn.functional.pad(x, (0, more)) for x in (lists.masked_counts, lists.full_counts))
    blocks = (torch.nn.functional.pad(x, (0, 0, 0, more)) for x in (lists.masked, lists.full))
    (masked_counts, full_counts), (masked, full) = counts, blocks
    offset = index.k_len - index.q_len
    return BlockMask.from_kv_blocks(
        masked_counts,
        masked,
        full_counts,
        full,
        BLOCK_SIZE=(index.q_block, index.k_block),
        mask_mod=_shifted(offset, index.counts.device) if offset else _causal,
        seq_lengths=(q_len, k_len),
        compute_q_blocks=False,
    )


def kernel_options(device: torch.device, dtype: torch.dtype, dim: int, q_block: int, k_block: int) -> dict[str, Any]:
    """Return tiles for torch's Triton template: its own where they divide the blocks, else the largest powers of two that do
    and whose stages fit into shared memory."""
    if device.type != "cuda":
        return {}
    # A row's first block is one over its own tokens, which it sees: no row is ever wholly masked.
    options: dict[str, Any] = {"FORCE_USE_FLEX_ATTENTION": True, "ROWS_GUARANTEED_SAFE": True}
    if q_block % 128 == 0 and k_block % 128 == 0:
        return options
    small = dim * dtype.itemsize <= 256
    rows, cols = min(q_block & -q_block, 128 if small else 64), min(k_block & -k_block, 64 if small else 32)
    return options | {"BLOCK_M": rows, "BLOCK_N": cols, "num_warps": 8 if rows == 128 else 4}


def _width(index: BlockIndex, k_len: int) -> int:
    """Return how many columns the lists have. The C++ kernel asks for one a key block; on CUDA they may be fewer, in steps
    of an eighth, as each width of an aligned length is a kernel of its own."""
    cols, width = -(-k_len // index.k_block), index.indices.shape[-1]
    if index.counts.device.type == "cpu":
        return cols
    step = -(-cols // 8)
    return min(cols, -(-width // step) * step)


def _causal(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return key <= query


@lru_cache(maxsize=64)
def _shifted(offset: int, device: torch.device) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Return the causal mask of queries that stand `offset` tokens further than their number. A tensor, so that another offset
    is not another kernel."""
    with torch.inference_mode(False):
        shift = torch.full((), offset, device=device)  # torch.tensor would wait for the device

    def causal(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return key <= query + shift

    return causal


# Two functions, not one compiled twice: torch keeps compiled kernels by function, and an aligned length would be given the
# kernel for any length where that was compiled first.


@lru_cache
def _aligned() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    def aligned(q: Tensor, k: Tensor, v: Tensor, mask: Any, scale: float, options: dict[str, Any], blocks: str) -> Tensor:
        if (
            not blocks
        ):  # looked at, so that each block size is a kernel of its own, whether or not torch tells masks apart by it
            raise ValueError("blocks says the block sizes")
        return flex_attention(q, k, v, block_mask=mask, scale=scale, enable_gqa=True, kernel_options=options)  # type: ignore

    return torch.compile(aligned, dynamic=False, fullgraph=True)


@lru_cache
def _ragged() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    def ragged(q: Tensor, k: Tensor, v: Tensor, mask: Any, scale: float, options: dict[str, Any], blocks: str) -> Tensor:
        if (
            not blocks
        ):  # looked at, so that each block size is a kernel of its own, whether or not torch tells masks apart by it
            raise ValueError("blocks says the block sizes")
        return flex_attention(q, k, v, block_mask=mask, scale=scale, enable_gqa=True, kernel_options=options)  # type: ignore

    return torch.compile(ragged, dynamic=True, fullgraph=True)


@lru_cache
def _cpu_compiler() -> bool:
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except RuntimeError:
        return False
    return torch.backends.cpu.get_cpu_capability().startswith("AVX")
