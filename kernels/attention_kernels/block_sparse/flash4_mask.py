"""The causal mask of FlashAttention-4's block-sparse kernel. In a module of its own: the compiler reads its source, and its
compiler is imported here (as flash-attn-4 has it: cutlass is a dependency of that package, not of this project)."""

from functools import lru_cache
from typing import Any

from flash_attn.cute.utils import Int32, cute, scalar_to_ssa


@lru_cache
def causal_mask(group: int) -> Any:
    """Return a mask_mod that is True where a query may see a key, the diagonal at the bottom right. Row r of the queries is of
    token r // group: `group` heads are packed into one (see `flash4`). The same object for the same group, as the library
    caches compiled kernels by it."""

    @cute.jit
    def causal(batch, head, row, key, lengths, tensors):  # type: ignore[no-untyped-def]
        shift = scalar_to_ssa(lengths.seqlen_k - lengths.seqlen_q, Int32)
        return key <= row + shift

    @cute.jit
    def packed_causal(batch, head, row, key, lengths, tensors):  # type: ignore[no-untyped-def]
        shift = scalar_to_ssa(lengths.seqlen_k - lengths.seqlen_q // group, Int32)
        return key <= row // scalar_to_ssa(group, Int32) + shift

    return causal if group == 1 else packed_causal
