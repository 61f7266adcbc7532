"""The two lists of an index: together they are the index, and only the masked one needs a mask."""

from __future__ import annotations

import pytest
import torch
from attention_kernels.block_index import BlockIndex
from attention_kernels.block_sparse.diagonal import per_query_head, split_diagonal
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.oracle import Case, cases, token_mask

EXACT = settings(derandomize=True, deadline=None, max_examples=80)


def mask_of(counts: torch.Tensor, indices: torch.Tensor, index: BlockIndex) -> torch.Tensor:
    """bool [B, H, Mq, Nk] of one list."""
    return BlockIndex(counts, indices, index.q_block, index.k_block, index.q_len, index.k_len).to_mask()


@EXACT
@given(cases(longest=300), st.sampled_from([0.0, 0.3, 1.0]), st.booleans(), st.integers(0, 99))
def test_lists_make_up_the_index(case: Case, share: float, widened: bool, seed: int) -> None:
    index = case.index("cpu", share=share, seed=seed)
    width = -(-case.k_len // case.k_block) if widened else None
    lists = split_diagonal(index, width)
    masked = mask_of(lists.masked_counts, lists.masked, index)
    full = mask_of(lists.full_counts, lists.full, index)
    assert torch.equal(masked | full, index.to_mask()) and not (masked & full).any()
    assert (lists.masked_counts >= 1).all(), "a row sees its own tokens"
    assert not widened or lists.masked.shape[-1] == lists.full.shape[-1] == width
    for x in (lists.masked_counts, lists.masked, lists.full_counts, lists.full):
        assert x.dtype == torch.int32 and x.is_contiguous()

    sees = token_mask(index, index.counts.shape[1])
    rows, cols = full.shape[-2:]
    for row in range(rows):  # of a full block, every query sees every key, and no key is missing
        queries = sees[..., row * case.q_block : (row + 1) * case.q_block, :]
        for col in range(cols):
            keys = queries[..., col * case.k_block : (col + 1) * case.k_block]
            whole = keys.flatten(-2).all(-1) & (keys.shape[-1] == case.k_block)
            assert whole[full[..., row, col]].all()


@EXACT
@given(cases())
def test_a_shared_list_is_repeated_for_its_heads(case: Case) -> None:
    index = case.index("cpu")
    per_head = per_query_head(index, case.heads)
    shared = case.heads // case.index_heads
    for head in range(case.heads):
        assert torch.equal(per_head.counts[:, head], index.counts[:, head // shared])
        assert torch.equal(per_head.indices[:, head], index.indices[:, head // shared])


@pytest.mark.parametrize("width", [None, 6])
def test_waits_for_no_device(width: int | None) -> None:
    """On a device without data: nothing can be asked of it."""
    index = Case(1, 2, 1, 70, 90, 16, 16, 16, 2).index("cpu")
    near, far = split_diagonal(index, width), split_diagonal(index.to("meta"), width)
    for name in ("masked_counts", "masked", "full_counts", "full"):
        assert getattr(far, name).is_meta and getattr(far, name).shape == getattr(near, name).shape


def test_what_is_kept_of_a_shape_may_be_used_in_training() -> None:
    index = Case(1, 2, 1, 70, 90, 16, 16, 16, 2).index("cpu")
    with torch.inference_mode():
        lists = split_diagonal(index)
    assert not lists.masked_counts.is_inference() and not lists.masked.is_inference()
