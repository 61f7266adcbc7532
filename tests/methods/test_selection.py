"""What every method promises: the density asked for, the diagonal, the same choice twice, all blocks at sparsity 0."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from attention_kernels.block_index import BlockIndex
from attention_kernels.block_map import block_map

import methods
from methods.parts.base import LayerInputs
from tests.methods.selecting import SPARSE, THRESHOLDS, calibrated, select, select_blocks
from tests.methods.support import Launches, layer, ready

SPARSITIES = [0.5, 0.7, 0.8, 0.9, 0.95]
SHAPES = [(640, 640), (637, 637), (744, 744), (320, 640), (205, 845)]
"""(queries, keys): whole blocks, odd lengths, and chunks of a longer prompt."""


OF_ALL_LAYERS = ["moa"]
"""Methods whose density is that over all heads and layers: their own tests hold it."""


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", [name for name in SPARSE if name not in OF_ALL_LAYERS])
def test_density_is_what_was_asked_for(name: str, shape: tuple[int, int]) -> None:
    x = layer(*shape)
    for sparsity in SPARSITIES:
        density = select(name, x, sparsity=sparsity).density()
        if name in THRESHOLDS:
            assert abs(density.mean() - (1 - sparsity)) < 0.02, (sparsity, density)
        else:
            assert (density - (1 - sparsity)).abs().max() < 0.01, (sparsity, density)


@pytest.mark.parametrize("name", THRESHOLDS)
def test_defaults_run_without_a_sparsity(name: str) -> None:
    for x in (layer(637), layer(205, 845), layer(1, 100)):
        index = ready(name, block_size=16).select(x)
        if index is not None:
            index.validate()


@pytest.mark.parametrize("shape", [(640, 640), (637, 637), (205, 845), (1, 100), (5, 5)])
@pytest.mark.parametrize("name", SPARSE)
def test_sparsity_0_keeps_every_block(name: str, shape: tuple[int, int]) -> None:
    x = layer(*shape)
    index = select(name, x, sparsity=0.0)
    assert bool((index.density() == 1).all())


@pytest.mark.parametrize("selection", ["threshold", "nz_ratio"])
@pytest.mark.parametrize("name", ["seer", "oracle"])
def test_sparsity_0_keeps_every_block_in_other_selections(name: str, selection: str) -> None:
    index = select(name, layer(637), sparsity=0.0, selection=selection)
    assert bool((index.density() == 1).all())


def test_the_oracle_of_a_rule_goes_by_that_rule() -> None:
    x = layer(637)
    truth = block_map(x.q, x.k, q_block=16, k_block=16, scale=x.scale, pool="max")
    share = truth / truth.sum(-1, keepdim=True)
    mask = select_blocks("oracle", x, selection="threshold", threshold=0.02).to_mask()
    own = torch.eye(mask.shape[-1], dtype=torch.bool)
    assert torch.equal(mask, (share > 0.02) | own)
    counts = select_blocks("oracle", x, selection="nz_ratio", nz_ratio=0.2).counts  # (1 - sqrt(0.8)) · 40 = 4.2
    assert counts[0, 0].tolist() == [1, 2, 3] + [4] * 37


@pytest.mark.parametrize("sparsity", [0.5, 0.8])
def test_no_choice_of_as_many_blocks_in_all_keeps_more_mass_than_the_oracle_above_a_threshold(sparsity: float) -> None:
    x = layer(637)
    mass = block_map(x.q, x.k, q_block=16, k_block=16, scale=x.scale, pool="mass")
    mask = select_blocks("oracle", x, sparsity=sparsity, pool="mass", selection="threshold").to_mask()
    own = torch.eye(mask.shape[-1], dtype=torch.bool).expand_as(mask)
    chosen = mask & ~own
    ranked = mass.masked_fill(own, 0).flatten().sort(descending=True).values
    assert torch.allclose(mass[chosen].sum(), ranked[: int(chosen.sum())].sum(), rtol=1e-4)
    alike = select_blocks("oracle", x, sparsity=float(1 - index_density(mask)), pool="mass").to_mask()
    assert mass[mask].sum() > mass[alike].sum(), "more than equal shares of as many blocks keep"


@pytest.mark.parametrize("knobs", [{"selection": "threshold", "threshold": 0.02}, {"selection": "nz_ratio", "nz_ratio": 0.3}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_oracle_of_a_chunk_is_that_of_the_whole(knobs: dict[str, object], dtype: torch.dtype) -> None:
    """The same rows, whose keys reach as far: blocks of 16, the last 208 queries of 640."""
    x = layer(640)
    x = replace(x, q=x.q.to(dtype), k=x.k.to(dtype))
    prompt_mask = select_blocks("oracle", x, **knobs).to_mask()
    chunk_mask = select_blocks("oracle", replace(x, q=x.q[:, :, -208:]), **knobs).to_mask()
    assert torch.equal(chunk_mask, prompt_mask[:, :, -13:])


def index_density(mask: torch.Tensor) -> float:
    """Share of the causal blocks of square blocks that a mask keeps."""
    blocks = mask.shape[-1]
    return float(mask.float().sum((-2, -1)).mean()) / (blocks * (blocks + 1) / 2)


def test_dense_runs_dense_at_any_sparsity() -> None:
    dense = methods.build("dense", sparsity=0.9)
    assert dense.select(layer(64)) is None
    assert dense.sparsity == 0


@pytest.mark.parametrize("shape", [(637, 637), (200, 640), (205, 845)])
@pytest.mark.parametrize("name", SPARSE)
def test_the_diagonal_is_always_kept(name: str, shape: tuple[int, int]) -> None:
    q_len, k_len = shape
    mask = select_blocks(name, layer(*shape), sparsity=0.95).to_mask()
    for row in range(mask.shape[2]):
        first = k_len - q_len + row * 16
        last = min(first + 16, k_len) - 1
        assert bool(mask[:, :, row, first // 16 : last // 16 + 1].all())


@pytest.mark.parametrize("name", SPARSE)
def test_the_same_choice_twice(name: str) -> None:
    index, again = (select(name, layer(637), sparsity=0.8) for _ in range(2))
    for field in fields(index):
        first, second = getattr(index, field.name), getattr(again, field.name)
        if isinstance(first, BlockIndex):
            assert torch.equal(first.counts, second.counts) and torch.equal(first.indices, second.indices)
        elif isinstance(first, torch.Tensor):
            assert torch.equal(first, second)


@pytest.mark.parametrize("name", SPARSE)
def test_batches_select_for_every_sample(name: str) -> None:
    """A row of a batch keeps what it would keep alone: prompts of one length are prefilled together."""
    x = layer(200, batch=3)
    method = calibrated(name, x, sparsity=0.8)
    index = method.select(x)
    assert index is not None and index.heads in (2, 4)
    for row in range(3):
        part = slice(row, row + 1)
        alone = method.select(replace(x, q=x.q[part], k=x.k[part]))
        assert alone is not None
        assert torch.equal(index.density()[part], alone.density())
        for block in range(-(-200 // alone.q_block)):
            assert torch.equal(index.row_keys(block)[part], alone.row_keys(block))


@pytest.mark.parametrize("sparsity", [0.5, 0.9])
def test_no_choice_of_as_many_blocks_keeps_more_mass_than_the_oracle(sparsity: float) -> None:
    x = layer(637)
    mass = block_map(x.q, x.k, q_block=16, k_block=16, scale=x.scale, pool="mass")
    best = mass.sort(-1, descending=True).values.cumsum(-1)
    masses = {}
    for name, knobs in [*((name, {}) for name in SPARSE), ("oracle", {"pool": "mass"})]:
        index = select_blocks(name, x, sparsity=sparsity, **knobs)
        group = mass.shape[1] // index.counts.shape[1]
        mask, counts = index.to_mask().repeat_interleave(group, 1), index.counts.repeat_interleave(group, 1)
        masses[name] = (mass * mask).sum(-1)
        assert bool((masses[name] <= best.gather(-1, counts.long()[..., None] - 1)[..., 0] + 1e-5).all()), name
    assert all(masses["oracle"].mean() >= masses[name].mean() for name in set(SPARSE) - set(THRESHOLDS))
    assert masses["block_topk"].mean() > masses["random"].mean()


def test_random_depends_on_seed_layer_and_head() -> None:
    x = layer(637)
    base = select_blocks("random", x, sparsity=0.8).to_mask()
    assert not torch.equal(base, select_blocks("random", x, sparsity=0.8, seed=1).to_mask())
    assert not torch.equal(base, select_blocks("random", x, sparsity=0.8, seed=2**32).to_mask())
    assert not torch.equal(base, select_blocks("random", layer(637, number=1), sparsity=0.8).to_mask())
    assert not torch.equal(base[:, 0], base[:, 1])


def test_random_is_uniform() -> None:
    from methods.random_blocks import hashed_uniform

    draw = hashed_uniform(0, 3, 1, torch.arange(0, 512 * 64, 64), 512).double()
    assert draw.min() >= 0
    assert draw.max() < 1
    assert abs(draw.mean() - 0.5) < 0.005
    assert abs(draw.var() - 1 / 12) < 0.002
    assert (draw.mean(0) - 0.5).abs().max() < 0.08  # 6 sigma of a mean over 512
    assert (draw.mean(1) - 0.5).abs().max() < 0.08
    neighbours = torch.corrcoef(torch.stack((draw[:, 1:].flatten(), draw[:, :-1].flatten())))[0, 1]
    assert abs(neighbours) < 0.01


def test_streaming_window_in_tokens() -> None:
    mask = select_blocks("streaming_llm", layer(160), window=17, sinks=4).to_mask()[0, 0]
    row, column = torch.arange(10)[:, None], torch.arange(10)
    assert torch.equal(mask, (column <= row) & ((column == 0) | (column >= row - 1)))


def test_streaming_without_sinks() -> None:
    mask = select_blocks("streaming_llm", layer(160), window=16, sinks=0).to_mask()[0, 0]
    assert torch.equal(mask, torch.eye(10, dtype=torch.bool))


def test_streaming_budget_goes_to_diagonal_then_sinks_then_recent() -> None:
    mask = select_blocks("streaming_llm", layer(640), sparsity=0.8, sinks=20).to_mask()[0, 0]
    counts = mask.sum(-1).tolist()
    for row, count in enumerate(counts):
        sinks = min(2, count - 1)
        expected = set(range(sinks)) | set(range(row + 1 - (count - sinks), row + 1))
        assert set(mask[row].nonzero().flatten().tolist()) == expected


@pytest.mark.parametrize("name", ["streaming_llm", "tri_shape"])
def test_what_depends_on_no_token_is_made_once(name: str) -> None:
    method = ready(name, sparsity=0.8)
    first, other = layer(640), layer(640, batch=2)
    index = method.select(first)
    with Launches() as launches:
        again = method.select(other)
    assert isinstance(index, BlockIndex) and isinstance(again, BlockIndex)
    assert launches.count <= 2  # counts and indices, a copy for every head
    assert again.full_rows == index.full_rows and all(torch.equal(mask, index.to_mask()[0]) for mask in again.to_mask())


def test_block_topk_finds_the_block_that_queries_point_at() -> None:
    x = layer(320)
    q, k = torch.zeros_like(x.q), torch.zeros_like(x.k)
    k[:, :, 5 * 16 : 6 * 16, 0] = 1.0
    q[..., 0] = 1.0
    index = select_blocks("block_topk", LayerInputs(q=q, k=k, layer=0, scale=x.scale), sparsity=0.8)
    mask = index.to_mask()[0]
    assert bool(mask[:, 12:, 5].all())


@pytest.mark.parametrize("name", ["block_topk", "seer"])
@pytest.mark.parametrize("shape", [(637, 637), (205, 845)])
def test_a_shared_selection_ranks_by_the_mean_of_the_group(name: str, shape: tuple[int, int]) -> None:
    x = layer(*shape)
    method = ready(name, block_size=16, sparsity=0.8, shared=True)
    index = method.select(x)
    assert index is not None
    index.validate()
    assert index.counts.shape[1] == x.k.shape[1]
    assert (index.density() - 0.2).abs().max() < 0.01
    assert method.knobs()["shared"] is True
    if name == "seer":
        assert x.rope is not None
        scores = method.gates[0](x.q, x.k, x.rope)  # type: ignore[attr-defined]
    else:
        q, k = (block_means(tokens) for tokens in (x.q, x.k))
        scores = q @ k.repeat_interleave(2, 1).mT
    mean = scores.unflatten(1, (2, 2)).mean(2)
    mask, offset = index.to_mask(), shape[1] - shape[0]
    for row in range(mask.shape[2]):
        own = (offset + row * 16) // 16  # blocks before the diagonal
        worst_kept = mean[:, :, row, :own].masked_fill(~mask[:, :, row, :own], float("inf")).amin(-1) if own else None
        best_left = mean[:, :, row, :own].masked_fill(mask[:, :, row, :own], float("-inf")).amax(-1) if own else None
        assert worst_kept is None or best_left is None or bool((worst_kept >= best_left - 1e-4).all())


def block_means(x: torch.Tensor) -> torch.Tensor:
    return torch.stack([part.mean(2) for part in x.split(16, dim=2)], dim=2)


def test_block_topk_pools_only_the_tokens_of_a_partial_block() -> None:
    from methods.parts.pooling import pool_blocks

    x = torch.randn(2, 3, 37, 8, dtype=torch.float64)
    for how, plain in (("mean", torch.mean), ("max", torch.amax), ("min", torch.amin)):
        expected = torch.stack([plain(x[:, :, i : i + 16], dim=2) for i in (0, 16, 32)], dim=2)
        torch.testing.assert_close(pool_blocks(x, 16, how), expected)  # type: ignore[arg-type]
        torch.testing.assert_close(pool_blocks(x[:, :, 32:], 16, how), expected[:, :, 2:])  # type: ignore[arg-type]
