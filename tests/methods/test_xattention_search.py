"""Thresholds per head: the order of steps, what a method makes of it, and what it is worth on a trained model."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from attention_kernels.block_map import block_map

import methods
from methods.parts.base import Knob
from methods.searches.xattention_search import (
    LEVELS,
    ThresholdSearch,
    cheapest_steps,
    counts_of,
    mean_at,
    parse_path,
    steps_for,
)
from methods.xattention import XAttention
from tests.methods import bundled
from tests.methods.support import DIM, HEADS, KV_HEADS, bisect, layer

SHAPE: dict[str, int] = {"layers": 2, "heads": HEADS, "kv_heads": KV_HEADS, "head_dim": DIM}


def curves(heads: int, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Falling density and mass of each head, not concave everywhere."""
    generator = torch.Generator().manual_seed(heads)
    down = torch.rand(2, heads, steps + 1, generator=generator).double().cumsum(-1) / (steps + 2)
    return 1 - down[0], 1 - down[1] ** 2


def test_wherever_two_heads_trade_steps_nothing_is_better_for_as_few_blocks() -> None:
    density, mass = curves(3, 5)
    path = cheapest_steps(density, mass)
    assert sorted(path) == sorted(list(range(3)) * 5)
    every = [
        (sum(density[h, j] for h, j in enumerate(at)), sum(mass[h, j] for h, j in enumerate(at)))
        for at in itertools.product(range(6), repeat=3)
    ]
    taken, optimal = [0, 0, 0], 0
    for head in path:
        taken[head] += 1
        blocks, reached = (sum(curve[h, j] for h, j in enumerate(taken)) for curve in (density, mass))
        best = max(m for d, m in every if d <= blocks + 1e-12)
        optimal += bool(reached >= best - 1e-12)  # inside a step of several there may be better
    assert optimal >= len(path) // 2
    assert taken == [5, 5, 5]


def test_as_many_steps_as_keep_the_mass() -> None:
    mass = torch.tensor([[1.0, 0.9, 0.5], [1.0, 0.8, 0.7]], dtype=torch.float64)
    path = [0, 1, 1, 0]
    assert [steps_for(mass, path, least) for least in (1.0, 0.95, 0.9, 0.85, 0.8, 0.6)] == [0, 1, 1, 2, 3, 4]


def xattention(result: dict[str, Any] | None = None, **knobs: object) -> XAttention:
    method = methods.build("xattention", **({"block_size": 16} | knobs))
    assert isinstance(method, XAttention)
    if result is not None:
        method.load_search(result, **SHAPE)
    return method


def test_each_head_selects_by_its_own_threshold() -> None:
    path = [0] * 3 + [1] + [3] * 8 + [4] * 2 + [5, 6]
    result = {"layers": 2, "heads": HEADS, "path": path, "steps": 14}
    method = xattention(result, thresholds="searched")
    for number, taken in ((0, [3, 1, 0, 8]), (1, [2, 0, 0, 0])):
        x = layer(320, number=number)
        index = method.select(x)
        index.validate()
        for head, steps in enumerate(taken):
            expected = xattention(threshold=LEVELS[steps]).select(x).to_mask()[:, head]
            assert torch.equal(index.to_mask()[:, head], expected)
    assert method.knobs() == {"threshold": None, "steps": 14, "stride": 8, "thresholds": "searched", "last": 0}


def test_heads_at_a_time_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    result = {"layers": 2, "heads": HEADS, "path": [0, 1, 1, 2, 3, 3, 3], "steps": 7}
    x = layer(203, batch=2)
    expected = xattention(result, thresholds="searched").select(x).to_mask()
    monkeypatch.setattr("methods.parts.head_chunks.BLOCK_PAIRS", 1)
    assert torch.equal(xattention(result, thresholds="searched").select(x).to_mask(), expected)


def test_a_sparsity_takes_steps_along_the_path() -> None:
    method = xattention(
        {"layers": 2, "heads": HEADS, "path": list(range(8)) * 30, "steps": 10}, thresholds="searched", sparsity=0.7
    )
    knob, x = method.calibrates(), layer(640)
    assert knob == Knob("steps", low=0.0, high=240.0, rising=False)

    def measure(value: float) -> float:
        method.set_knob(knob, value)
        return float(method.select(x).density().mean())

    value = bisect(measure, knob, 0.3)
    assert measure(value) == pytest.approx(0.3, abs=0.02)
    assert method.knobs()["steps"] == pytest.approx(value)


def test_searched_thresholds_keep_more_mass_than_one_in_fewer_blocks() -> None:
    """The claim behind them, on the bundled model and a prompt that the search has not seen."""
    shape = {"layers": 6, "heads": 4, "kv_heads": 2, "head_dim": 64}
    seen, unseen = (methods.build("xattention", block_size=32).search(**shape) for _ in range(2))
    assert isinstance(seen, ThresholdSearch)
    assert isinstance(unseen, ThresholdSearch)
    for index, search in enumerate((seen, unseen)):
        for x, v in bundled.layers("niah_multikey_1", 1024, index):
            search.observe(x, v)
    result = seen.result()
    assert result["prompts"] == 1
    assert result["searched"]["mass"] >= result["one_threshold"]["mass"]
    assert result["searched"]["density"] < result["one_threshold"]["density"] - 0.01
    density, mass = unseen.curves()
    for step in (3, 5, 6, 8, 12):  # one threshold of 0.96, 0.9, 0.81, 0.66, 0.43
        blocks, one_mass = (float(curve[:, step].mean()) for curve in (density, mass))
        taken = next(
            taken
            for taken in (counts_of(result["path"][:steps], 24) for steps in range(len(result["path"])))
            if mean_at(density, taken) <= blocks
        )
        assert mean_at(mass, taken) > one_mass + (0.003 if step >= 5 else 0), step


def test_the_curves_are_those_of_the_selection() -> None:
    search = xattention().search(**SHAPE)
    inputs = [layer(205, 333, number=number, seed=number) for number in range(2)]
    for x in inputs:
        search.observe(x, x.k)
    density, mass = search.curves()
    for number, x in enumerate(inputs):
        index = xattention(threshold=LEVELS[7]).select(x)
        truth = block_map(x.q, x.k, q_block=16, k_block=16, scale=x.scale, pool="mass")
        heads = slice(number * HEADS, (number + 1) * HEADS)
        torch.testing.assert_close(density[heads, 7].float(), index.density()[0])
        torch.testing.assert_close(mass[heads, 7].float(), (truth * index.to_mask()).sum(-1).mean(-1)[0])


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ({}, "not what a search for thresholds writes"),
        ({"layers": 3, "heads": 4, "path": [], "steps": 0}, "searched in 3 layers of 4 heads; the model has 2 of 4"),
        ({"layers": 2, "heads": 4, "path": [8], "steps": 1}, "1 steps along a path of 1 through 8 heads: not a path"),
        ({"layers": 2, "heads": 4, "path": [1], "steps": 2}, "2 steps along a path of 1"),
        ({"layers": 2, "heads": 4, "path": [1] * 45, "steps": 2}, "2 steps along a path of 45"),
        ({"layers": float("inf"), "heads": 4, "path": [1], "steps": 1}, "not what a search for thresholds writes"),
        ({"layers": 2, "heads": 4, "path": ["1"], "steps": 1}, "not what a search for thresholds writes"),
    ],
)
def test_a_search_that_does_not_fit_is_one_clear_line(result: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_path(result, layers=2, heads=HEADS)


def test_where_the_file_is_and_what_lacks_it() -> None:
    assert xattention().search_file() is None
    assert xattention(thresholds="searched").search_file() == "xattention-thresholds.json"
    assert xattention(thresholds="mine.json").search_file() == "mine.json"
    with pytest.raises(ValueError, match="has thresholds=searched and was given none"):
        xattention(thresholds="searched").select(layer(64))
    with pytest.raises(ValueError, match=r"threshold=0.8 and thresholds=searched: give one of them"):
        xattention(thresholds="searched", threshold=0.8)
    with pytest.raises(ValueError, match="no prompt was observed"):
        xattention().search(**SHAPE).result()
