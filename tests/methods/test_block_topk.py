"""Block top-k against its formula, written out block by block."""

from __future__ import annotations

import pytest
import torch
from attention_kernels.block_index import BlockIndex, causal_mask

import methods
from harness.core.method_facts import method_facts
from methods.parts.base import LayerInputs
from methods.parts.scored_method import Selection
from tests.methods.support import layer

BLOCK = 16


def literal(x: LayerInputs, pool: str) -> torch.Tensor:
    """bool [B, Hq, Mq, Nk] of the blocks with the highest products, float64, one block at a time; the diagonal first."""
    method = methods.build("block_topk", block_size=BLOCK, sparsity=0.8)
    budget = method.budget(x)
    (batch, heads, q_len, _), (_, kv_heads, k_len, _) = x.q.shape, x.k.shape
    q, k, offset = x.q.double(), x.k.double(), k_len - q_len

    def pooled(tokens: torch.Tensor) -> torch.Tensor:
        return tokens.mean(0) if pool == "mean" else tokens.amax(0)

    mask = torch.zeros(batch, heads, len(budget), -(-k_len // BLOCK), dtype=torch.bool)
    for b in range(batch):
        for h in range(heads):
            keys = [pooled(part) for part in k[b, h // (heads // kv_heads)].split(BLOCK)]
            for row, queries in enumerate(q[b, h].split(BLOCK)):
                first, last = offset + row * BLOCK, offset + row * BLOCK + len(queries) - 1
                seen = range(last // BLOCK + 1)
                scores = {j: float(pooled(queries) @ keys[j]) * x.scale for j in seen}
                own = [j for j in seen if j >= first // BLOCK]
                ranked = own + sorted(set(seen) - set(own), key=lambda j: -scores[j])
                mask[b, h, row, ranked[: max(budget[row], len(own))]] = True
    return mask


@pytest.mark.parametrize("pool", ["mean", "max"])
@pytest.mark.parametrize(("q_len", "k_len", "batch"), [(203, 203, 2), (61, 210, 1), (1, 100, 1)])
def test_equals_the_formula(q_len: int, k_len: int, batch: int, pool: str) -> None:
    x = layer(q_len, k_len, batch=batch)
    index = methods.build("block_topk", block_size=BLOCK, sparsity=0.8, pool=pool).select(x)
    assert index is not None
    assert torch.equal(index.to_mask(), literal(x, pool))


def test_a_maximum_sees_one_loud_key_that_a_mean_hides() -> None:
    x = layer(320)
    q, k = torch.zeros_like(x.q), torch.zeros_like(x.k)
    q[..., 0] = 1.0
    k[:, :, 5 * BLOCK, 0], k[:, :, 5 * BLOCK + 1 : 6 * BLOCK, 0] = (
        10.0,
        -1.0,
    )  # one key fits well, the others of its block badly
    loud = LayerInputs(q=q, k=k, layer=0, scale=x.scale)
    hit = {}
    for pool in ("mean", "max"):
        index = methods.build("block_topk", block_size=BLOCK, sparsity=0.9, pool=pool).select(loud)
        assert index is not None
        hit[pool] = bool(index.to_mask()[:, :, 12:, 5].any())
    assert hit == {"mean": False, "max": True}


def test_an_unknown_pool_is_refused() -> None:
    with pytest.raises(ValueError, match="pool=min: must be one of mean, max"):
        methods.build("block_topk", sparsity=0.5, pool="min")


def test_a_threshold_keeps_the_shares_above_it_and_the_diagonal() -> None:
    x = layer(203)
    method = methods.build("block_topk", block_size=BLOCK, selection="threshold", threshold=0.07)
    index = method.select(x)
    assert index is not None
    above = (method.scores(x) > 0.07) | torch.eye(-(-203 // BLOCK), dtype=torch.bool)
    assert torch.equal(index.to_mask(), above)
    assert len({int(row.sum()) for row in above[0, 0]}) > 2, "every row keeps as many: the test cannot tell the rules apart"


def test_nz_ratio_keeps_the_same_number_in_every_row() -> None:
    x = layer(203)
    index = methods.build("block_topk", block_size=BLOCK, selection="nz_ratio", sparsity=0.6).select(x)
    assert index is not None
    most = int((1 - 0.6**0.5) * -(-203 // BLOCK))
    assert index.to_mask().sum(-1)[0, 0].tolist() == [min(row + 1, most) for row in range(-(-203 // BLOCK))]


def test_the_default_rule_leaves_recorded_arms_as_they_were() -> None:
    knobs, added = methods.build("block_topk", sparsity=0.5, pool="max").knobs(), method_facts("block_topk").added_knobs
    assert {name: value for name, value in knobs.items() if (name, value) not in added.items()} == {
        "pool": "max",
        "shared": False,
    }


@pytest.mark.parametrize("selection", ["topk", "nz_ratio", "threshold"])
def test_last_rows_are_full_and_count_in_the_density(selection: Selection) -> None:
    """With a sparsity the other rows pay for them; what a threshold keeps there stays as it was."""
    x = layer(203)
    grid = {"q_len": 203, "k_len": 203, "q_block": BLOCK, "k_block": BLOCK}
    method = methods.build("block_topk", block_size=BLOCK, sparsity=0.4, selection=selection, last=2)
    if selection == "threshold":
        method.threshold = 0.07  # what calibration would find
    index = method.select(x)
    assert index is not None
    index.validate()
    mask, causal = index.to_mask(), causal_mask(**grid)
    assert bool((mask[:, :, -2:] == causal[-2:]).all()) and not bool((mask[:, :, -4:-2] == causal[-4:-2]).all())
    if selection == "threshold":
        above = (method.scores(x) > 0.07) | torch.eye(-(-203 // BLOCK), dtype=torch.bool)
        assert torch.equal(mask[:, :, :-2], above[:, :, :-2])
    elif selection == "nz_ratio":  # as many blocks in each of the others as fit, and no more
        counts, seen = index.counts[0, 0].tolist(), causal.sum(-1).tolist()
        most = max(counts[:-2])
        assert counts[:-2] == [min(most, c) for c in seen[:-2]]
        more = sum(min(most + 1, c) for c in seen[:-2]) + sum(seen[-2:])
        assert sum(counts) <= 0.6 * sum(seen) < more
    else:
        density = float(index.density().mean())
        assert abs(density - 0.6) < 0.02
    free = methods.build("block_topk", block_size=BLOCK, sparsity=0.9, selection="topk", last=2).select(x)
    assert free is not None and float(free.density().mean()) < 0.2, "two full rows are a quarter of this map: none fits in"


def test_a_threshold_of_its_own_pays_for_last_rows_beside_it() -> None:
    x = layer(61, 210)  # queries of a later chunk: the last blocks are the chunk's
    method = methods.build("block_topk", block_size=BLOCK, selection="threshold", threshold=0.9, last=9)
    index = method.select(x)
    assert index is not None and float(index.density().mean()) == 1.0, "the chunk has four query blocks"
    with pytest.raises(ValueError, match="last=-1: must be at least 0 query blocks"):
        methods.build("block_topk", sparsity=0.5, last=-1)


@pytest.mark.parametrize("name", ["random", "xattention", "oracle", "block_topk"])
def test_every_method_that_takes_last_keeps_those_rows(name: str) -> None:
    x = layer(203)
    method = methods.build(name, block_size=BLOCK, sparsity=0.2, last=2)
    if name == "xattention":
        method.threshold = 0.3  # what calibration would find
    index = method.select(x)
    assert isinstance(index, BlockIndex)
    mask, causal = index.to_mask(), causal_mask(q_len=203, k_len=203, q_block=BLOCK, k_block=BLOCK)
    assert bool((mask[:, :, -2:] == causal[-2:]).all()) and not bool((mask[:, :, -4:-2] == causal[-4:-2]).all())
    assert method.knobs()["last"] == 2 and method_facts(name).added_knobs["last"] == 0, "recorded rows stand for 0"


def test_an_nz_ratio_of_its_own_keeps_its_number_beside_full_rows() -> None:
    x = layer(203)
    counts = {
        last: methods.build("block_topk", block_size=BLOCK, selection="nz_ratio", nz_ratio=0.4, last=last).select(x)
        for last in (0, 2)
    }
    plain, full = (index.counts[0, 0].tolist() for index in counts.values() if isinstance(index, BlockIndex))
    assert full == [*plain[:-2], 12, 13] and plain[-1] < 12
