"""BlockIndex and the selections that make one: properties over shapes."""

from __future__ import annotations

import pytest
import torch
from attention_kernels.block_index import BlockIndex, causal_blocks, causal_mask, diagonal_mask
from attention_kernels.selection import row_budget, select_mass, select_threshold, select_topk
from hypothesis import given, settings
from hypothesis import strategies as st

EXACT = settings(derandomize=True, deadline=None, max_examples=40)


@st.composite
def grids(draw: st.DrawFn) -> dict[str, int]:
    q_len = draw(st.integers(1, 300))
    blocks = st.sampled_from([8, 16, 32, 64])
    return {"q_block": draw(blocks), "k_block": draw(blocks), "q_len": q_len, "k_len": q_len + draw(st.integers(0, 200))}


def scores(grid: dict[str, int], seed: int, heads: int = 2) -> torch.Tensor:
    shape = (1, heads, -(-grid["q_len"] // grid["q_block"]), -(-grid["k_len"] // grid["k_block"]))
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@EXACT
@given(grids())
def test_causal_blocks_are_those_some_query_sees(grid: dict[str, int]) -> None:
    offset = grid["k_len"] - grid["q_len"]
    for row, count in enumerate(causal_blocks(**grid).tolist()):
        last = min((row + 1) * grid["q_block"], grid["q_len"]) - 1 + offset
        assert count == last // grid["k_block"] + 1
    own = diagonal_mask(**grid)
    for row in range(own.shape[0]):
        positions = range(row * grid["q_block"], min((row + 1) * grid["q_block"], grid["q_len"]))
        assert set(own[row].nonzero().ravel().tolist()) == {(p + offset) // grid["k_block"] for p in positions}


@EXACT
@given(grids(), st.integers(0, 9), st.floats(0, 1))
def test_mask_round_trip(grid: dict[str, int], seed: int, share: float) -> None:
    mask = scores(grid, seed) < share
    index = BlockIndex.from_mask(mask, **grid)
    index.validate()
    expected = (mask | diagonal_mask(**grid)) & causal_mask(**grid)
    assert torch.equal(index.to_mask(), expected)
    torch.testing.assert_close(index.density(), expected.sum((-2, -1)) / causal_mask(**grid).sum())
    wide = BlockIndex.from_mask(mask, wait=False, **grid)
    wide.validate()
    assert wide.indices.shape[-1] == mask.shape[-1] and torch.equal(wide.to_mask(), expected)


@EXACT
@given(grids())
def test_full_keeps_everything(grid: dict[str, int]) -> None:
    full = BlockIndex.full(2, 3, **grid)
    full.validate()
    assert torch.equal(full.density(), torch.ones(2, 3))


@EXACT
@given(grids(), st.floats(0.01, 1))
def test_row_budget_follows_the_density(grid: dict[str, int], density: float) -> None:
    budget, causal = row_budget(density, **grid), causal_blocks(**grid).tolist()
    assert all(1 <= k <= c for k, c in zip(budget, causal, strict=True))
    expected, floor = density * sum(causal), len(causal)
    assert sum(budget) <= max(expected + 0.5, floor) and sum(budget) >= min(expected - 0.5, sum(causal))


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.7, 0.8, 0.9, 0.95])
@pytest.mark.parametrize("length", [4096, 5000, 131072])
def test_density_is_exact_where_blocks_allow(length: int, sparsity: float) -> None:
    total = int(causal_blocks(length, length, 64, 64).sum())
    assert abs(sum(row_budget(1 - sparsity, length, length, 64, 64)) / total - (1 - sparsity)) < 1e-3


@EXACT
@given(grids(), st.integers(0, 9), st.floats(0.05, 1))
def test_topk_keeps_the_best(grid: dict[str, int], seed: int, density: float) -> None:
    given_scores, budget = scores(grid, seed), row_budget(density, **grid)
    index = select_topk(given_scores, budget, **grid)
    index.validate()
    selected, own, causal = index.to_mask(), diagonal_mask(**grid), causal_mask(**grid)
    expected = torch.maximum(torch.tensor(budget), own.sum(-1))
    assert torch.equal(index.counts.long(), expected.expand(index.counts.shape))
    free = causal & ~own
    worst_kept = given_scores.masked_fill(~(selected & free), 2.0).amin(-1)
    best_left = given_scores.masked_fill(~(~selected & free), -1.0).amax(-1)
    assert (worst_kept >= best_left).all()


def test_nan_scores_lose() -> None:
    grid = {"q_block": 16, "k_block": 16, "q_len": 160, "k_len": 160}
    values = scores(grid, 0)
    values[..., 3] = float("nan")
    selected = select_topk(values, row_budget(0.5, **grid), **grid).to_mask()
    assert not selected[:, :, 5:, 3].any()


@EXACT
@given(grids(), st.integers(0, 9), st.floats(0.05, 0.99))
def test_mass_is_reached_by_the_fewest(grid: dict[str, int], seed: int, mass: float) -> None:
    probs = scores(grid, seed).masked_fill(~causal_mask(**grid), 0)
    probs = probs / probs.sum(-1, keepdim=True)
    index = select_mass(probs, mass, **grid)
    index.validate()
    selected, own = index.to_mask(), diagonal_mask(**grid)
    reached = (probs * selected).sum(-1)
    assert (reached >= mass - 1e-5).all()
    smallest = probs.masked_fill(~(selected & ~own), 9.0).amin(-1)
    assert ((smallest == 9.0) | (reached - smallest < mass + 1e-5)).all(), "without its smallest block a row falls short"


def test_threshold_keeps_what_is_above() -> None:
    grid = {"q_block": 16, "k_block": 16, "q_len": 100, "k_len": 100}
    probs = scores(grid, 4)
    index = select_threshold(probs, 0.6, **grid)
    index.validate()
    assert torch.equal(index.to_mask(), ((probs > 0.6) | diagonal_mask(**grid)) & causal_mask(**grid))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda i: i.indices[..., 0].fill_(99), "not causal"),
        (lambda i: i.counts.zero_(), "between 1 and"),
        (lambda i: i.indices.copy_(i.indices.flip(-1)), "ascend|not causal|own tokens"),
    ],
)
def test_validate_finds_what_is_wrong(change, says: str) -> None:
    grid = {"q_block": 16, "k_block": 16, "q_len": 100, "k_len": 100}
    index = BlockIndex.from_mask(scores(grid, 1) < 0.5, **grid)
    change(index)
    with pytest.raises(ValueError, match=says):
        index.validate()
