"""Merged blocks: exactly the union of what was kept, on grids of any shape."""

from __future__ import annotations

import pytest
import torch
from attention_kernels.block_index import BlockIndex
from attention_kernels.merge_blocks import merge_blocks
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import pad

from tests.kernels.oracle import Case, cases

EXACT = settings(derandomize=True, deadline=None, max_examples=80)
FACTORS = st.integers(1, 4)


def union(mask: torch.Tensor, rows: int, cols: int) -> torch.Tensor:
    """bool [B, H, Mq, Nk] -> blocks of rows × cols blocks, True where one is."""
    *lead, m, n = mask.shape
    mask = pad(mask, (0, -n % cols, 0, -m % rows))
    return mask.view(*lead, -(-m // rows), rows, -(-n // cols), cols).any(-1).any(-2)


@EXACT
@given(cases(longest=300), FACTORS, FACTORS, st.sampled_from([0.0, 0.1, 0.5, 1.0]), st.integers(0, 99))
def test_is_the_union(case: Case, q_factor: int, k_factor: int, share: float, seed: int) -> None:
    index = case.index("cpu", share=share, seed=seed)
    merged = merge_blocks(index, q_factor, k_factor)
    merged.validate()
    assert (merged.q_block, merged.k_block) == (index.q_block * q_factor, index.k_block * k_factor)
    assert torch.equal(merged.to_mask(), union(index.to_mask(), q_factor, k_factor))
    assert torch.equal(merge_blocks(merged, 1, 1).to_mask(), merged.to_mask())


@EXACT
@given(cases(longest=300), FACTORS, FACTORS)
def test_keeps_the_conventions_of_an_index(case: Case, q_factor: int, k_factor: int) -> None:
    merged = merge_blocks(case.index("cpu"), q_factor, k_factor)
    unused = torch.arange(merged.indices.shape[-1]) >= merged.counts[..., None]
    assert not merged.indices[unused].any(), "entries past counts are 0"
    assert merged.indices.is_contiguous() and merged.counts.is_contiguous()
    assert merged.indices.shape[-1] <= -(-merged.k_len // merged.k_block)


def test_a_compact_index_stays_compact() -> None:
    """The width is bounded by what the rows of one coarse row keep together, not by all blocks."""
    case = Case(1, 1, 1, 4096, 4096, 16, 64, 64, 1)
    index = case.index("cpu", share=0.0)  # the diagonal alone
    merged = merge_blocks(index, 2, 2)
    assert index.indices.shape[-1] == 1 and merged.indices.shape[-1] == 2
    assert (merged.counts == 1).all()


def test_density_rises_as_the_arithmetic_says() -> None:
    """A block of 4 random ones is kept with 1 - (1 - p)⁴; the 64 on the diagonal, of 64 · 65 / 2, always are."""
    case = Case(1, 8, 8, 8192, 8192, 16, 64, 64, 8)
    index = case.index("cpu", share=0.1)
    coarse = merge_blocks(index, 2, 2).density().mean()
    assert float(index.density().mean()) == pytest.approx(0.1, abs=0.02)
    assert float(coarse) == pytest.approx(1 - 0.9**4 * (1 - 2 / 65), abs=0.005)


def test_waits_for_no_device() -> None:
    """On a device without data: nothing can be asked of it."""
    index = Case(1, 2, 1, 300, 333, 16, 16, 16, 2).index("cpu")
    near, far = merge_blocks(index, 2, 4), merge_blocks(index.to("meta"), 2, 4)
    assert far.indices.is_meta and far.indices.shape == near.indices.shape and far.counts.shape == near.counts.shape


def test_a_full_index_stays_full() -> None:
    merged = merge_blocks(BlockIndex.full(2, 3, q_block=16, k_block=32, q_len=100, k_len=333), 4, 2)
    assert torch.equal(merged.density(), torch.ones(2, 3))


@pytest.mark.parametrize("factors", [(0, 1), (2, -1)])
def test_refuses_what_is_no_factor(factors: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="both must be at least 1"):
        merge_blocks(BlockIndex.full(1, 1, q_block=16, k_block=16, q_len=64, k_len=64), *factors)
