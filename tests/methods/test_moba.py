"""MoBA's rule query by query, and the union of a query block's choices that kernels with one list a block run."""

from __future__ import annotations

import pytest
import torch
from attention_kernels.block_index import BlockIndex
from attention_kernels.block_sparse import block_sparse_attention
from torch import Tensor

import methods
from methods.moba import union_order
from methods.parts.base import LayerInputs
from tests.methods.support import layer

SHAPES = [(203, 203, 2), (160, 160, 1), (64, 224, 1), (61, 205, 1), (1, 100, 1), (5, 70, 1)]
"""(queries, keys, batch): off the block, chunks, a single query."""


def literal(x: LayerInputs, block: int, topk: int) -> Tensor:
    """bool [B,Hq,Q,blocks]: what each query chooses."""
    q_len, k_len = x.q.shape[2], x.k.shape[2]
    choice = torch.zeros(*x.q.shape[:3], -(-k_len // block), dtype=torch.bool)
    for b in range(choice.shape[0]):
        for h in range(choice.shape[1]):
            k = x.k[b, h * x.k.shape[1] // x.q.shape[1]].double()
            means = torch.stack([part.mean(0) for part in k.split(block)])
            for t, gates in enumerate((x.q[b, h].double() @ means.T).tolist()):
                own = (t + k_len - q_len) // block
                best = sorted(range(own), key=lambda j: -gates[j])[: topk - 1]
                choice[b, h, t, [*best, own]] = True
    return choice


def select(x: LayerInputs, **knobs: object) -> BlockIndex:
    index = methods.build("moba", **({"block_size": 16} | knobs)).select(x)
    assert index is not None
    index.validate()
    return index


@pytest.mark.parametrize(("q_len", "k_len", "batch"), SHAPES)
@pytest.mark.parametrize(("block", "topk"), [(16, 3), (32, 2), (48, 1)])
def test_each_query_attends_to_its_own_block_and_its_best(q_len: int, k_len: int, batch: int, block: int, topk: int) -> None:
    x = layer(q_len, k_len, batch=batch)
    index = select(x, exact=True, block=block, topk=topk)
    assert (index.q_block, index.k_block) == (1, block)
    expected = literal(x, block, topk)
    assert torch.equal(index.to_mask(), expected)
    own = (torch.arange(q_len) + k_len - q_len) // block
    assert bool(index.to_mask().gather(-1, own[:, None].expand(*expected.shape[:3], 1)).all())
    assert bool((expected.sum(-1) == (own + 1).clamp(max=topk)).all())


@pytest.mark.parametrize(("q_len", "k_len", "batch"), SHAPES)
def test_a_query_block_attends_to_what_any_of_its_queries_chose(q_len: int, k_len: int, batch: int) -> None:
    x = layer(q_len, k_len, batch=batch)
    mask = select(x, block=32, topk=2).to_mask()
    expected = literal(x, 32, 2).repeat_interleave(2, -1)[..., : -(-k_len // 16)]
    rows = torch.stack([part.any(2) for part in expected.split(16, dim=2)], dim=2)
    row, column = torch.arange(rows.shape[2])[:, None], torch.arange(rows.shape[3])
    last = (row * 16 + 15).clamp(max=q_len - 1) + k_len - q_len
    assert torch.equal(mask, rows & (column <= last // 16))


@pytest.mark.parametrize("kernel", ["sdpa", "reference"])
def test_exact_runs_as_the_rule_says(kernel: str) -> None:
    x = layer(61, 205)
    v = torch.randn(x.k.shape, generator=torch.Generator().manual_seed(1)).double()
    q, k = x.q.double(), x.k.double()
    seen = literal(x, 32, 2).repeat_interleave(32, -1)[..., :205] & torch.ones(61, 205, dtype=torch.bool).tril(144)
    scores = (q @ k.repeat_interleave(2, 1).mT * x.scale).masked_fill(~seen, -float("inf"))
    expected = scores.softmax(-1) @ v.repeat_interleave(2, 1)
    index = select(x, exact=True, block=32, topk=2)
    torch.testing.assert_close(block_sparse_attention(q, k, v, index, scale=x.scale, kernel=kernel), expected)


def test_lists_that_could_leave_nothing_out_are_not_made() -> None:
    for exact in (False, True):
        assert methods.build("moba", exact=exact, block=64, topk=2).select(layer(128)) is None
        assert methods.build("moba", exact=exact, block=64, topk=2).select(layer(129)) is not None
    index = select(layer(130), block_size=64, exact=True, sparsity=0.0)
    assert index.q_block == 64 and bool((index.density() == 1).all()), "no list of a single query"


def test_pieces_and_strides_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    x = layer(203, batch=2)
    settings: list[dict[str, object]] = [{}, {"exact": True}, {"sparsity": 0.7}, {"sparsity": 0.7, "exact": True}]
    expected = [select(x, block=32, **knobs).to_mask() for knobs in settings]
    monkeypatch.setattr("methods.moba.GATES", 1)
    monkeypatch.setattr("methods.parts.head_chunks.BLOCK_PAIRS", 1)
    q, k = (tokens.transpose(1, 2).contiguous().transpose(1, 2) for tokens in (x.q, x.k))
    strided = LayerInputs(q=q, k=k, layer=0, scale=x.scale)
    for knobs, mask in zip(settings, expected, strict=True):
        assert torch.equal(select(strided, block=32, **knobs).to_mask(), mask)


def test_the_order_takes_the_union_of_every_topk_before_the_next() -> None:
    generator = torch.Generator().manual_seed(0)
    gates = torch.randn(3, 7, 12, generator=generator)
    gates[..., 10:] = -float("inf")
    taken = union_order(gates).argsort(dim=-1, descending=True, stable=True)
    for topk in range(1, 11):
        for row in range(3):
            union = set(gates[row].topk(topk, -1).indices.flatten().tolist())
            assert set(taken[row, : len(union)].tolist()) == union


def test_of_one_rank_the_block_that_most_queries_name_comes_first() -> None:
    gates = torch.tensor([[5.0, 1.0, 2.0], [5.0, 1.0, 2.0], [5.0, 3.0, 2.0]])
    assert union_order(gates).argsort(descending=True).tolist() == [0, 2, 1]


@pytest.mark.parametrize("exact", [False, True])
def test_a_sparsity_sets_the_budget_and_keeps_the_latest_of_the_own_block(exact: bool) -> None:
    x = layer(640)
    index = select(x, sparsity=0.8, exact=exact, block=64)
    assert (index.density() - 0.2).abs().max() < 0.01
    if not exact:
        mask = index.to_mask()
        rows = torch.arange(12, 40)  # two blocks at least: the one before lies in the same 64 tokens but for every fourth row
        inside = rows[rows % 4 != 0]
        assert bool(mask[:, :, inside, inside - 1].all())


def test_defaults() -> None:
    method = methods.build("moba")
    assert method.knobs() == {"topk": 3, "block": None, "exact": False}
    for length, block in ((131072, 2048), (4096, 64), (1 << 20, 4096), (300, 64), (12000, 128)):
        x = LayerInputs(q=torch.empty(1, 1, 1, 1), k=torch.empty(1, 1, length, 1), layer=0, scale=1.0)
        assert method.tokens(x) == block  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"sparsity": 0.5, "topk": 3}, "sparsity=0.5 and topk=3: give one of them"),
        ({"topk": 0}, "topk=0: must be at least 1"),
        ({"block": 100}, "block=100: must be a multiple of block_size=64"),
    ],
)
def test_bad_knobs_are_one_clear_line(knobs: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        methods.build("moba", **knobs)
