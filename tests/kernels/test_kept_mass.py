"""Kept attention mass against the whole attention matrix in float64."""

from __future__ import annotations

import pytest
import torch
from attention_kernels.block_index import BlockIndex
from attention_kernels.kept_mass import kept_mass

from tests.kernels.oracle import CASES, Case, probabilities, token_mask


@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_the_sum_over_the_matrix(case: Case) -> None:
    q, k, _ = case.tensors(torch.float32, "cpu")
    index = case.index("cpu")
    causal = torch.ones(case.q_len, case.k_len, dtype=torch.bool).tril(case.k_len - case.q_len)
    mass = (probabilities(q, k, causal.expand(case.batch, case.heads, -1, -1)) * token_mask(index, case.heads)).sum(-1)
    by_row = [part.mean(-1) for part in mass.split(case.q_block, dim=-1)]
    mass_found = kept_mass(q, k, index, scale=case.dim**-0.5, rows=10_000)
    torch.testing.assert_close(mass_found, torch.stack(by_row).mean(0).float(), rtol=1e-4, atol=1e-5)


def test_a_full_index_keeps_everything_and_fewer_blocks_less() -> None:
    case = Case(1, 4, 2, 400, 400, 64, 16, 16, 4)
    q, k, _ = case.tensors(torch.float32, "cpu")
    full = kept_mass(q, k, BlockIndex.full(1, 4, **case.grid), scale=0.125)
    torch.testing.assert_close(full, torch.ones(1, 4))
    shares = [kept_mass(q, k, case.index("cpu", share=share), scale=0.125).mean() for share in (0.1, 0.5, 0.9)]
    assert 0 < shares[0] < shares[1] < shares[2] < 1


def test_a_sample_of_rows_is_near_the_mean_of_all() -> None:
    case = Case(1, 2, 1, 2000, 2000, 64, 16, 16, 2)
    q, k, _ = case.tensors(torch.float32, "cpu")
    index = case.index("cpu", share=0.3)
    some, all_rows = (kept_mass(q, k, index, scale=0.125, rows=rows) for rows in (16, 10_000))
    assert (some - all_rows).abs().max() < 0.08
