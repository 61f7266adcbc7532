"""What is made of the sums over columns and diagonals."""

from __future__ import annotations

import pytest
import torch

from methods.parts.row_budgets import mean_row_budget
from methods.parts.vertical_slash import block_sums, count_to_pass, largest_mask, vertical_slash_mask


def test_block_sums_of_a_partial_last_block() -> None:
    assert block_sums(torch.arange(5.0), 2).tolist() == [1.0, 5.0, 4.0]


def test_covering_counts_the_one_that_passes() -> None:
    x = torch.tensor([0.125, 0.5, 0.125, 0.25])
    assert [int(count_to_pass(x, share)) for share in (0.4, 0.5, 0.8, 1.0)] == [1, 2, 3, 5]


def test_largest_takes_the_earlier_of_equals() -> None:
    x = torch.tensor([[1.0, 2.0, 2.0, 2.0], [3.0, 1.0, 0.0, 2.0]])
    expected = [[False, True, True, False], [True, True, False, True]]
    assert largest_mask(x, torch.tensor([2, 3])).tolist() == expected
    assert not largest_mask(x, torch.tensor([0, 0])).any()


@pytest.mark.parametrize(("q_len", "k_len"), [(64, 64), (61, 61), (29, 61), (3, 61)])
def test_mask_of_columns_and_diagonals(q_len: int, k_len: int) -> None:
    """Each block pair, by the tokens in its lower left corner."""
    grid = {"q_block": 16, "k_block": 16, "q_len": q_len, "k_len": k_len}
    columns = torch.tensor([False, True, False, False])
    diagonals = torch.tensor([False, True, False, True])  # the main one, and the one two blocks below
    mask = vertical_slash_mask(columns, diagonals, grid)  # type: ignore[arg-type]
    for i in range(mask.shape[0]):
        last = (min((i + 1) * 16, q_len) - 1 + k_len - q_len) // 16
        for j in range(last + 1):
            assert bool(mask[i, j]) == (j == 1 or last - j in (0, 2)), (i, j)


def test_the_mean_row_budget_is_the_density_times_the_average_row() -> None:
    grid = {"q_block": 16, "k_block": 16, "q_len": 64, "k_len": 64}
    assert mean_row_budget(0.6, **grid) == pytest.approx(0.4 * (1 + 2 + 3 + 4) / 4)  # type: ignore[arg-type]
