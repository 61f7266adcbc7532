"""Kascade: anchors hold the best blocks of the true map, other layers exactly what their anchor's heads selected."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

import pytest
import torch
from attention_kernels.block_map import block_map
from attention_kernels.kept_mass import kept_mass

import methods
from methods.kascade import Kascade, even_budget, native_budget, released_budget
from methods.parts.base import LayerInputs
from methods.searches.kascade_search import KascadeSearch, best_anchors, parse_plan, usual_anchors
from tests.methods import bundled
from tests.methods.support import DIM, HEADS, KV_HEADS, layer

SHAPE: dict[str, int] = {"layers": 6, "heads": HEADS, "kv_heads": KV_HEADS, "head_dim": DIM}


def kascade(plan: dict[str, Any] | None = None, **knobs: object) -> Kascade:
    method = methods.build("kascade", **({"block_size": 16, "sparsity": 0.8} | knobs))
    assert isinstance(method, Kascade)
    if plan is not None:
        result = {"layers": 6, "kv_heads": KV_HEADS, "choices": {str(len(plan["anchors"])): plan}}
        method.anchors = len(plan["anchors"])
        method.load_search(result, **SHAPE)
    return method


def mask(method: Kascade, x: LayerInputs) -> torch.Tensor:
    index = method.select(x)
    assert index is not None
    index.validate()
    return index.to_mask()


@pytest.mark.parametrize(("q_len", "k_len"), [(320, 320), (333, 333), (61, 205)])
def test_an_anchor_keeps_the_blocks_of_most_mass(q_len: int, k_len: int) -> None:
    x = layer(q_len, k_len, batch=2)
    scores = x.q.double() @ x.k.double().repeat_interleave(2, 1).mT * x.scale
    future = torch.ones(q_len, k_len, dtype=torch.bool).triu(1 + k_len - q_len)
    probs = scores.masked_fill(future, -float("inf")).softmax(-1)
    selected = mask(kascade(), x)
    assert selected.shape[1] == KV_HEADS
    for row in range(selected.shape[2]):
        own = probs[:, :, row * 16 : (row + 1) * 16].sum(2).unflatten(1, (KV_HEADS, -1)).sum(2)  # [B,Hkv,K]
        mass = torch.nn.functional.pad(own, (0, -k_len % 16)).unflatten(-1, (-1, 16)).sum(-1)
        first = (k_len - q_len + row * 16) // 16  # the diagonal is kept whatever it holds
        kept_before, left_out = selected[:, :, row, :first], ~selected[:, :, row, :first]
        worst = mass[..., :first].masked_fill(left_out, float("inf")).amin(-1) if first else None
        best = mass[..., :first].masked_fill(kept_before, 0).amax(-1) if first else None
        assert worst is None or best is None or bool((worst >= best - 1e-6).all())


def test_without_a_search_an_anchor_every_few_layers() -> None:
    method = kascade(every=3)
    inputs = [layer(320, number=number, seed=number) for number in range(7)]
    masks = [mask(method, x) for x in inputs]
    own = [mask(kascade(), x) for x in inputs]
    for number in range(7):
        assert torch.equal(masks[number], own[number // 3 * 3])
    assert not torch.equal(own[0], own[1])
    assert method.knobs()["anchor_layers"] == "every 3"
    assert method.knobs()["heads"] == "own"


def test_with_a_search_heads_take_the_blocks_of_the_heads_most_like_them() -> None:
    method = kascade({"anchors": [0, 2], "heads": {"1": [1, 0], "3": [1, 1], "4": [0, 1], "5": [0, 0]}})
    inputs = [layer(320, number=number, seed=number) for number in range(6)]
    masks = [mask(method, x) for x in inputs]
    first, second = mask(kascade(), inputs[0]), mask(kascade(), inputs[2])
    expected = [first, first.flip(1), second, second[:, [1, 1]], second, second[:, [0, 0]]]
    assert all(torch.equal(a, b) for a, b in zip(masks, expected, strict=True))
    assert not torch.equal(first[:, 0], first[:, 1])
    knobs = {"topk": None, "anchor_layers": "0,2", "heads": "searched", "dense_first": False, "rolling_prefill": None}
    assert method.knobs() == knobs


def test_a_reuse_layer_computes_no_map_and_an_anchor_does_at_every_call(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def counted(q: torch.Tensor, k: torch.Tensor, **kw: Any) -> torch.Tensor:
        calls.append(q.shape[2])
        return block_map(q, k, **kw)

    monkeypatch.setattr("methods.kascade.block_map", counted)
    method, inputs = kascade(every=2), [layer(160, number=number) for number in range(4)]
    for x in inputs:
        for _ in range(3):  # as a clock calls it
            method.select(x)
    assert len(calls) == 2 * 3


def test_nothing_is_reused_of_another_prompt_shape_or_order() -> None:
    plan = {"anchors": [0, 2], "heads": {"1": [0, 1], "3": [0, 1], "4": [0, 1], "5": [0, 1]}}
    method, inputs = kascade(plan), [layer(320, number=number, seed=number) for number in range(6)]
    lacks = "reuses in layer 1 what layer 0 selected, and that has selected nothing for this prompt"
    with pytest.raises(ValueError, match=lacks):
        method.select(inputs[1])
    for x in inputs:
        method.select(x)
    with pytest.raises(ValueError, match=lacks):  # the last anchor was layer 2
        method.select(inputs[1])
    other = [replace(x, q=x.q + 1) for x in inputs]
    assert torch.equal(mask(method, other[0]), mask(kascade(), other[0]))  # a new prompt of the same shape
    assert torch.equal(mask(method, other[1]), mask(kascade(), other[0]))
    with pytest.raises(ValueError, match=lacks):  # another length
        method.select(layer(304, number=1))
    method.select(other[0])
    method.select(other[1])
    method.select(other[2])
    method.select(other[4])
    with pytest.raises(ValueError, match="reuses in layer 3 what layer 2"):  # layers go up within a prompt
        method.select(other[3])
    method = kascade(every=6)
    for x in inputs[:3]:
        method.select(x)
    assert torch.equal(mask(method, other[1]), mask(kascade(), other[1]))  # a layer before the last one: a new prompt


def test_native_defaults() -> None:
    method = kascade(sparsity=None, block_size=16)
    x = layer(1440)
    assert method.select(x) is None  # layer 0 is dense,
    index = method.select(replace(x, layer=1))  # and selects for the next
    assert index is not None
    row = (torch.arange(90) + 1).double()
    expected = torch.minimum(row, (0.1 * row).clamp(min=8))
    assert (index.counts - expected).abs().max() <= 1
    assert torch.equal(index.to_mask(), mask(kascade(sparsity=None, dense_first=False), x))
    assert native_budget(0.1, q_block=64, k_block=64, q_len=64, k_len=64) == (1,)
    assert method.calibrates() is None


@pytest.mark.parametrize("number", [1, 2, 3, 5, 7])
def test_anchors_are_the_best_of_all(number: int) -> None:
    generator = torch.Generator().manual_seed(number)
    seen = [0, 1, 2, 5, 6, 7, 9]  # some layers never select
    alike = {(a, b): 1.0 if a == b else float(torch.rand((), generator=generator)) for a in seen for b in seen if a <= b}

    def total(anchors: Sequence[int]) -> float:
        return sum(alike[max(a for a in anchors if a <= b), b] for b in seen)

    anchors, similarity = best_anchors(alike, seen, number)
    assert len(anchors) == number
    assert anchors[0] == 0
    assert similarity == pytest.approx(max(total((0, *later)) for later in itertools.combinations(seen[1:], number - 1)))
    assert similarity == pytest.approx(total(anchors))


def planted(number: int, prompt: int) -> LayerInputs:
    """Layers 0 to 2 look at one set of blocks for each KV head, 3 to 5 at another; heads are swapped in 1 and 5."""
    generator = torch.Generator().manual_seed(100 * prompt + number // 3)
    look = torch.rand(1, KV_HEADS, 20, generator=generator).repeat_interleave(16, 2)
    if number in (1, 5):
        look = look.flip(1)
    k = torch.zeros(1, KV_HEADS, 320, DIM)
    k[..., 0] = 20 * look
    q = torch.zeros(1, HEADS, 320, DIM)
    q[..., 0] = 2.0
    return LayerInputs(q=q, k=k, layer=number, scale=DIM**-0.5)


def test_the_search_finds_planted_anchors_and_heads() -> None:
    search = kascade().search(**SHAPE)
    for prompt in range(2):
        for number in range(6):
            x = planted(number, prompt)
            search.observe(x, x.k)
    result = search.result()
    assert result["prompts"] == 2
    assert result["choices"]["2"]["anchors"] == [0, 3]
    assert result["choices"]["2"]["heads"] == {"1": [1, 0], "2": [0, 1], "4": [0, 1], "5": [1, 0]}
    assert result["choices"]["2"]["similarity"] == pytest.approx(1)
    assert result["choices"]["1"]["similarity"] < 0.9
    assert result["choices"]["6"]["anchors"] == list(range(6))


@pytest.mark.parametrize(("layers", "anchors"), [(1, 1), (6, 2), (32, 5), (55, 9)])
def test_a_search_answers_for_as_many_anchors_as_are_usual(layers: int, anchors: int) -> None:
    shape = SHAPE | {"layers": layers}
    method = kascade(anchors=None)
    search = method.search(**shape)
    for number in range(layers):
        x = layer(64, number=number, seed=number)
        search.observe(x, x.k)
    method.load_search(search.result(), **shape)
    assert method.plan is not None
    assert len(method.plan.anchors) == anchors
    assert [len(method.plan.heads), len(method.plan.anchors)] == [layers - anchors, anchors]


def test_usual_anchors_are_five_of_32_layers() -> None:
    assert [usual_anchors(layers) for layers in (1, 6, 32, 55, 64, 80)] == [2, 2, 5, 9, 10, 12]


def test_a_layer_that_the_search_never_saw_does_not_take_its_own_heads_in_silence() -> None:
    method = kascade({"anchors": [0, 2], "heads": {"3": [1, 0], "4": [0, 1], "5": [0, 1]}})
    method.select(layer(320))
    with pytest.raises(ValueError, match="has no heads for layer 1, which its search never saw"):
        method.select(layer(320, number=1))


def test_searched_anchors_keep_more_mass_than_random_ones_and_searched_heads_than_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The paper's claims, on the bundled model and a prompt that the search has not seen. One prompt is searched."""
    shape = {"layers": 6, "heads": 4, "kv_heads": 2, "head_dim": 64}
    search = methods.build("kascade", sparsity=0.8, block_size=32).search(**shape)
    assert isinstance(search, KascadeSearch)
    for x, v in bundled.layers("niah_multikey_1", 1024):
        search.observe(x, v)
    test = [x for x, _ in bundled.layers("niah_multikey_1", 1024, 1)]
    maps = {x.q.data_ptr(): block_map(x.q, x.k, q_block=32, k_block=32, scale=x.scale, pool="mass") for x in test}
    monkeypatch.setattr("methods.kascade.block_map", lambda q, k, **_: maps[q.data_ptr()])  # the same for all plans
    kept_masses: dict[tuple[int, bytes], float] = {}

    def mean_mass(plan: dict[str, Any]) -> float:
        method = methods.build("kascade", sparsity=0.8, block_size=32, anchors=len(plan["anchors"]))
        method.load_search({"layers": 6, "kv_heads": 2, "choices": {str(len(plan["anchors"])): plan}}, **shape)
        masses = []
        for x in test:
            index = method.select(x)
            assert index is not None
            choice = (x.layer, bytes(index.indices.numpy().data))  # many plans share it
            if choice not in kept_masses:
                kept_masses[choice] = float(kept_mass(x.q, x.k, index, scale=x.scale).mean())
            masses.append(kept_masses[choice])
        return fmean(masses)

    def plan(anchors: tuple[int, ...], turned: bool = False) -> dict[str, Any]:
        heads = {}
        for number in set(range(6)) - set(anchors):
            alike = search.similarity(max(a for a in anchors if a < number), number)
            heads[str(number)] = alike.argmin(-1).tolist() if turned else alike.argmax(-1).tolist()
        return {"anchors": list(anchors), "heads": heads}

    for number in (2, 3):
        plans = [(0, *later) for later in itertools.combinations(range(1, 6), number - 1)]
        masses = {anchors: mean_mass(plan(anchors)) for anchors in plans}
        chosen = tuple(search.result()["choices"][str(number)]["anchors"])
        assert masses[chosen] > fmean(masses.values()) + 0.01
        assert fmean(masses.values()) > fmean(mean_mass(plan(anchors, turned=True)) for anchors in plans) + 0.005


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ({}, "not what a search for anchor layers writes"),
        ({"layers": 5, "kv_heads": 2, "choices": {}}, "searched in 5 layers of 2 KV heads; the model has 6 of 2"),
        ({"layers": 6, "kv_heads": 2, "choices": {"3": {}, "4": {}}}, "no plan of 2 anchors was searched; choose one of: 3, 4"),
        ({"layers": 6, "kv_heads": 2, "choices": {"2": {"anchors": [0, 3]}}}, "not what a search"),
        (
            {"layers": 6, "kv_heads": 2, "choices": {"2": {"anchors": [0, 3], "heads": {"1": [0, 2]}}}},
            r"layer 1 takes the blocks of heads \[0, 2\]: not 2 of 0 to 1",
        ),
        ({"layers": 6, "kv_heads": 2, "choices": {"2": {"anchors": [3, 0], "heads": {}}}}, "must ascend"),
        ({"layers": 6, "kv_heads": 2, "choices": {"2": {"anchors": [float("inf")], "heads": {}}}}, "not what a search"),
    ],
)
def test_a_search_that_does_not_fit_is_one_clear_line(result: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_plan(result, 2, layers=6, kv_heads=2)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"topk": 0.1}, "sparsity=0.8 and topk=0.1: give one of them"),
        ({"sparsity": None, "topk": 1.5}, "topk=1.5: must be a share of the keys"),
        ({"every": 0}, "every=0: must be at least 1 layer"),
        ({"anchors": 0}, "anchors=0: must be at least 1 layer"),
    ],
)
def test_bad_knobs_are_one_clear_line(knobs: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kascade(**knobs)


@pytest.mark.gpu
def test_reusing_never_waits_for_the_device() -> None:
    method = kascade({"anchors": [0, 2], "heads": {"1": [1, 0], "3": [1, 1], "4": [0, 1], "5": [0, 0]}}).to("cuda")
    inputs = [layer(320, number=number, seed=number, device="cuda") for number in range(6)]
    for turn in range(2):
        torch.cuda.set_sync_debug_mode("error" if turn else "default")
        try:
            for x in inputs:
                method.select(x)
        finally:
            torch.cuda.set_sync_debug_mode("default")


# -- as released -----------------------------------------------------------------------------------------------------


def test_as_released_every_row_keeps_the_share_of_the_whole_prompt() -> None:
    grid = {"q_block": 32, "k_block": 32, "q_len": 2048, "k_len": 2048}
    # a tenth of 2048 keys is 204: the row's own 32 and 172 others, six blocks
    assert released_budget(0.1, rolling=False, **grid) == tuple(min(row + 1, 7) for row in range(64))
    rolling = released_budget(0.1, rolling=True, **grid)
    # a tenth of what is before the row, 128 keys at least: four blocks to token 1280, six (172 keys, as the others) from 1720
    assert [rolling[row] for row in (0, 3, 4, 40, 41, 53, 54, 63)] == [1, 4, 5, 5, 6, 7, 7, 7]
    assert native_budget(0.1, **grid)[10:20] == (4,) * 10


def test_rolling_prefill_is_the_papers_rule_and_the_releases_flag() -> None:
    x = layer(640)
    rows = {
        (as_released, rolling): methods.build(
            "kascade", block_size=16, as_released=as_released, rolling_prefill=rolling, topk=0.6, dense_first=False
        ).select(x)
        for as_released in (False, True)
        for rolling in (None, False, True)
    }
    counts = {key: index.counts[0, 0].tolist() for key, index in rows.items()}
    assert counts[False, None] == counts[False, True] and counts[True, None] == counts[True, False] == counts[False, False]
    assert counts[True, None] == [min(row + 1, 24) for row in range(40)]  # 384 keys, its own 16 among them
    assert counts[True, True][30] == 1 + 18 and counts[True, True][-1] == 24  # 288 of the 480 keys before row 30
    assert methods.build("kascade", as_released=True).block_size == 32


@pytest.mark.parametrize("sparsity", [0.5, 0.9, 0.97])
def test_as_released_rows_are_even_at_a_sparsity(sparsity: float) -> None:
    grid = {"q_block": 16, "k_block": 16, "q_len": 2000, "k_len": 2000}
    budget = even_budget(1 - sparsity, **grid)
    most = max(budget)
    assert all(blocks in (min(row + 1, most), min(row + 1, most - 1)) for row, blocks in enumerate(budget))
    assert sum(budget) / sum(range(1, 126)) == pytest.approx(1 - sparsity, rel=0.01)
    method, x = methods.build("kascade", as_released=True, block_size=16, sparsity=sparsity), layer(640)
    assert method.select(x).counts[0, 0].tolist() == list(even_budget(1 - sparsity, **method.grid(x)))
