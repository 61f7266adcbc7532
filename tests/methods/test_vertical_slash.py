"""Column and diagonal sums of the last queries' attention, against loops over every query and key."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from methods.chunks import row_average
from methods.vertical_slash import block_sums, covering, largest, vertical_slash, vertical_slash_mask
from tests.methods.support import layer


def literal(q: torch.Tensor, k: torch.Tensor, scale: float, last_q: int) -> tuple[torch.Tensor, torch.Tensor]:
    """vertical, slash [K] of one head, float64, entry by entry."""
    (q_len, _), k_len = q.shape, k.shape[0]
    rows = min(last_q, q_len)
    vertical, slash = torch.zeros(2, k_len, dtype=torch.float64)
    for i in range(q_len - rows, q_len):
        position = i + k_len - q_len
        probs = (q[i].double() @ k[: position + 1].double().T * scale).softmax(-1)
        for j in range(position + 1):
            vertical[j] += probs[j] / rows
            slash[k_len - 1 - (position - j)] += probs[j] / rows
    return vertical, slash


@pytest.mark.parametrize(("q_len", "k_len", "last_q"), [(70, 70, 16), (37, 101, 16), (5, 60, 16), (1, 33, 64), (9, 9, 64)])
def test_equals_the_sums_over_every_entry(q_len: int, k_len: int, last_q: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x = layer(q_len, k_len, batch=2)
    q = x.q.transpose(1, 2).contiguous().transpose(1, 2)  # as a projection leaves it
    for limit in (1 << 26, 1):  # all heads at once, one at a time
        monkeypatch.setattr("methods.vertical_slash.SCORES", limit)
        vertical, slash = vertical_slash(q, x.k, scale=x.scale, last_q=last_q)
        assert vertical.dtype == slash.dtype == torch.float32
        for b in range(2):
            for h in range(4):
                wanted = literal(q[b, h], x.k[b, h // 2], x.scale, last_q)
                torch.testing.assert_close(vertical[b, h].double(), wanted[0], atol=1e-6, rtol=1e-4)
                torch.testing.assert_close(slash[b, h].double(), wanted[1], atol=1e-6, rtol=1e-4)


def test_both_sum_to_1() -> None:
    x = layer(40, 90)
    for sums in vertical_slash(x.q, x.k, scale=x.scale, last_q=16):
        torch.testing.assert_close(sums.sum(-1), torch.ones(1, 4))


def test_float64_stays() -> None:
    x = layer(20)
    x = replace(x, q=x.q.double(), k=x.k.double())
    assert vertical_slash(x.q, x.k, scale=x.scale, last_q=16)[1].dtype == torch.float64


def test_last_q_must_be_a_number_of_queries() -> None:
    x = layer(20)
    with pytest.raises(ValueError, match="last_q=0: must be at least 1 query"):
        vertical_slash(x.q, x.k, scale=x.scale, last_q=0)


def test_block_sums_of_a_partial_last_block() -> None:
    assert block_sums(torch.arange(5.0), 2).tolist() == [1.0, 5.0, 4.0]


def test_covering_counts_the_one_that_passes() -> None:
    x = torch.tensor([0.125, 0.5, 0.125, 0.25])
    assert [int(covering(x, share)) for share in (0.4, 0.5, 0.8, 1.0)] == [1, 2, 3, 5]


def test_largest_takes_the_earlier_of_equals() -> None:
    x = torch.tensor([[1.0, 2.0, 2.0, 2.0], [3.0, 1.0, 0.0, 2.0]])
    wanted = [[False, True, True, False], [True, True, False, True]]
    assert largest(x, torch.tensor([2, 3])).tolist() == wanted
    assert not largest(x, torch.tensor([0, 0])).any()


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


def test_row_average_is_the_density_times_the_average_row() -> None:
    grid = {"q_block": 16, "k_block": 16, "q_len": 64, "k_len": 64}
    assert row_average(0.6, grid) == pytest.approx(0.4 * (1 + 2 + 3 + 4) / 4)  # type: ignore[arg-type]
