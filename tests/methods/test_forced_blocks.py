"""Blocks kept by decree, what a density leaves of them, and the rule that reaches a share of a row's mass."""

from __future__ import annotations

import pytest
import torch
from attention_kernels.block_index import causal_blocks, causal_total, diagonal_mask

from methods.parts.forced_blocks import forced_blocks
from methods.parts.row_budgets import budget_with_full_rows, rows_of_last_queries
from methods.parts.top_p import top_p_mask

SHAPES = [(640, 640, 16, 16), (637, 637, 16, 16), (205, 845, 16, 16), (100, 333, 32, 32), (1, 100, 16, 16), (5, 5, 16, 16)]
CPU = torch.device("cpu")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("sinks", "window", "last"), [(1, 1, 0), (2, 4, 2), (0, 3, 1), (5, 1, 100)])
def test_decreed_blocks_block_by_block(shape: tuple[int, int, int, int], sinks: int, window: int, last: int) -> None:
    q_len, k_len, q_block, k_block = shape
    forced = forced_blocks(sinks, window, last, None, *shape, CPU)
    rows = len(causal_blocks(*shape))
    for i in range(rows):
        first = (k_len - q_len + i * q_block) // k_block
        final = (k_len - q_len + min((i + 1) * q_block, q_len) - 1) // k_block
        for j in range(forced.shape[1]):
            expected = j <= final and (j < sinks or j > first - window or i >= rows - last)
            assert bool(forced[i, j]) == expected, (i, j)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("density", [0.05, 0.3, 1.0])
def test_a_density_leaves_half_of_itself_to_decree(shape: tuple[int, int, int, int], density: float) -> None:
    mask = forced_blocks(2, 4, 2, density, *shape, CPU)
    diagonal = diagonal_mask(*shape)
    assert bool((mask | ~diagonal).all())
    off_diagonal = int((mask & ~diagonal).sum())
    full, share = budget_with_full_rows(density, 2, *shape, diagonal=True)
    cost = sum(causal_blocks(*shape)[len(share) - full :].tolist())
    own = int(diagonal[: len(share) - full].sum())
    assert full == 0 or cost + own <= density * causal_total(*shape) / 2
    assert off_diagonal <= cost + sum(s // 2 for s in share[: len(share) - full])
    assert sum(share) <= density * causal_total(*shape) + len(share)
    wide = forced_blocks(2, 4, 2, None, *shape, CPU)
    assert bool((wide | ~mask).all())  # never more than without a density


def test_full_rows_wait_until_the_diagonal_is_paid() -> None:
    shape = (640, 640, 16, 16)  # 820 blocks; the last row has 40, and the diagonal before it 39
    for density, without_diagonal, beside in ((0.05, 0, 0), (0.11, 1, 0), (0.18, 1, 0), (0.20, 2, 1), (0.30, 2, 2)):
        assert budget_with_full_rows(density, 2, *shape)[0] == without_diagonal
        assert budget_with_full_rows(density, 2, *shape, diagonal=True)[0] == beside


def test_with_room_enough_decree_is_what_it_is_without_a_density() -> None:
    shape = (64 * 200, 64 * 200, 64, 64)
    mask, expected = forced_blocks(2, 4, 2, 0.3, *shape, CPU), forced_blocks(2, 4, 2, None, *shape, CPU)
    assert torch.equal(mask[40:], expected[40:])
    assert not torch.equal(mask, expected)


@pytest.mark.parametrize(
    ("last", "q_len", "rows"), [(0, 100, 0), (1, 100, 1), (4, 100, 1), (5, 100, 2), (100, 100, 7), (999, 5, 1)]
)
def test_full_rows_hold_the_last_queries(last: int, q_len: int, rows: int) -> None:
    assert rows_of_last_queries(last, q_len, 16) == rows


def test_reach_mass_takes_the_best_until_the_share_is_reached() -> None:
    scores = torch.tensor([[1.0, 1.0, 3.0, 1.5, 1.5]])  # sums in eighths: exact
    forced = torch.tensor([[True, False, False, False, False]])
    for mass, expected in ((0.0, "10000"), (0.125, "10000"), (0.5, "10100"), (0.625, "10110"), (0.75, "10111"), (0.9, "11111")):
        mask = top_p_mask(scores, forced, mass)
        assert "".join(str(int(bit)) for bit in mask[0]) == expected, mass


def test_reach_mass_never_takes_what_scores_nothing() -> None:
    scores = torch.tensor([[0.5, 0.5, 0.0, 0.0]])
    assert top_p_mask(scores, torch.zeros(1, 4, dtype=torch.bool), 1.0).tolist() == [[True, True, False, False]]
