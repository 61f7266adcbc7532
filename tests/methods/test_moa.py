"""MoA: what a rule makes a head keep, what a sparsity makes of all of them, and which rules the search finds."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from attention_kernels.dense import dense_attention

import methods
from methods.moa import MoA
from methods.searches.moa_search import best_rules, span_losses
from methods.streaming_llm import StreamingLLM
from tests.methods.support import HEADS, LAYERS, SHAPE, layer

RULES = {
    "alphas": [[0.0, 0.0, 128.0, -40.0], [48.0, 0.0, 0.0, 32.0]],
    "betas": [[0.25, 0.5, 0.0, 0.75], [0.0, 0.125, 1.0, 0.0625]],
}
"""Of two layers with four query heads."""


def moa(rules: dict[str, Any] | None = None, **knobs: object) -> MoA:
    method = methods.build("moa", **{"block_size": 16, "sinks": 16, **knobs})
    assert isinstance(method, MoA)
    method.load_search(RULES if rules is None else rules, **SHAPE)
    return method


def alike(alpha: float, beta: float) -> dict[str, Any]:
    """Rules that are the same in all heads."""
    return {"alphas": [[alpha] * HEADS] * LAYERS, "betas": [[beta] * HEADS] * LAYERS}


@pytest.mark.parametrize("shape", [(640, 640), (397, 397), (150, 505)])
def test_a_head_keeps_sinks_and_a_window_of_its_own_width(shape: tuple[int, int]) -> None:
    method = moa()
    for number in range(LAYERS):
        x = layer(*shape, number=number, batch=2)
        index = method.select(x)
        assert index is not None
        index.validate()
        assert index.counts.shape[:2] == (2, HEADS)
        for head, (alpha, beta) in enumerate(zip(RULES["alphas"][number], RULES["betas"][number], strict=True)):
            tokens = min(shape[1], max(32, int(alpha + beta * shape[1])))
            expected = StreamingLLM(block_size=16, window=16 * (-(-tokens // 16) - 1), sinks=16).select(x)
            assert torch.equal(index.to_mask()[1, head], expected.to_mask()[1, 0]), head


def test_spans_grow_with_the_prompt_and_with_the_tokens_that_the_release_adds() -> None:
    method = moa(alike(32, 0.25))
    grid = method.grid(layer(640))
    assert {n: method.plan(grid).spans(n, 32)[0][0] for n in (16, 64, 640, 1280)} == {16: 16, 64: 48, 640: 192, 1280: 352}
    assert method.plan(grid).spans(20, 32)[0][0] == 20
    released = moa(alike(-1024, 1), new_tokens=1024)
    assert released.select(layer(640)) is None, "as released, heads of this rule span all that is shorter than 1024 tokens"
    assert moa(alike(-1024, 1)).select(layer(640)) is not None


@pytest.mark.parametrize("shape", [(640, 640), (2001, 2001), (205, 845)])
@pytest.mark.parametrize("sparsity", [0.2, 0.5, 0.8, 0.9, 0.95])
def test_the_density_over_all_heads_is_as_asked(shape: tuple[int, int], sparsity: float) -> None:
    method = moa(sparsity=sparsity)
    tiles, total = 0, 0
    for number in range(LAYERS):
        index = method.select(layer(*shape, number=number))
        assert index is not None
        index.validate()
        tiles += int(index.tiles().sum())
        total += int(index.tiles().sum() / index.density().mean() / HEADS + 0.5) * HEADS
    assert abs(tiles - (1 - sparsity) * total) <= 1, "to a block of all layers and heads"


def test_as_released_a_sparsity_leaves_two_blocks_a_row() -> None:
    method = methods.build("moa", as_released=True, block_size=16, sparsity=0.97)
    assert isinstance(method, MoA)
    method.load_search(RULES, **SHAPE)
    assert (method.new_tokens, method.budget_share) == (1024, None)
    index = method.select(layer(640))
    assert index is not None and index.counts[..., 1:].unique().tolist() == [2]
    plain = moa(sparsity=0.97).select(layer(640))
    assert plain is not None and float(plain.density().mean()) < 0.8 * float(index.density().mean())
    assert methods.build("moa", as_released=True).knobs()["budget"] == 0.5


def test_one_factor_widens_all_spans_alike() -> None:
    method = moa({"alphas": [[0.0] * 4] * 2, "betas": [[0.1, 0.2, 0.1, 0.2]] * 2}, sparsity=0.8)
    index = method.select(layer(2001))
    assert index is not None
    last = index.counts[0, :, -4:].float().mean(-1)  # rows differ by a block at most
    assert last[1] / last[0] == pytest.approx(2, abs=0.1)
    assert (index.counts.diff(dim=-1)[..., 60:].abs() <= 1).all()


def test_with_a_sparsity_the_rules_of_the_nearest_density_are_scaled() -> None:
    far, near = alike(0, 0.5), {"alphas": [[32.0] * 4, [0.0] * 4], "betas": [[0.0] * 4, [0.25] * 4]}
    plans = {"plans": {"0.5": far, "0.125": near}}
    grid = moa().grid(layer(640))
    taken = {sparsity: moa(plans, sparsity=sparsity).plan(grid).betas[0][0] for sparsity in (0.1, 0.4, 0.8, 0.95)}
    assert taken == {0.1: 0.5, 0.4: 0.5, 0.8: 0.0, 0.95: 0.0}
    assert moa(plans).plan(grid).betas[0][0] == 0.5, "the budget of the release"
    assert moa(plans, budget=0.125).plan(grid).betas[0][0] == 0.0
    with pytest.raises(ValueError, match=r"it has no rules of a budget of 0.3; choose one of: 0.5, 0.125"):
        moa(plans, budget=0.3)
    with pytest.raises(ValueError, match=r"it has no rules of a budget of 0.5; they are of no stated budget: leave it out"):
        moa(RULES, budget=0.5)


def test_a_layer_whose_heads_span_the_prompt_is_dense() -> None:
    method = moa({"alphas": [[0.0] * 4, []], "betas": [[1.0] * 4, []]})
    assert method.select(layer(397)) is None
    with pytest.raises(ValueError, match="no rules for layer 1, which its search never saw"):
        method.select(layer(397, number=1))
    with pytest.raises(ValueError, match=r"load moa-rules\.json first"):
        methods.build("moa", sparsity=0.5).select(layer(397))


# -- the search ------------------------------------------------------------------------------------------------------


def test_the_search_measures_what_a_span_loses() -> None:
    tokens, block = 120, 16
    x = layer(tokens, seed=1)
    v = torch.randn(x.k.shape, generator=torch.Generator().manual_seed(1))
    losses = span_losses(x, v, block=block, sinks=16)
    assert losses.shape == (3, HEADS, 8)
    keys, values = (t.double().repeat_interleave(2, 1) for t in (x.k, v))
    dense = dense_attention(x.q.double(), x.k.double(), v.double(), scale=x.scale, kernel="reference")
    for blocks, (part, rows) in product((2, 4, 8), enumerate((32, 64, 120))):
        mask = StreamingLLM(block_size=block, window=(blocks - 1) * block, sinks=16).select(x).to_mask()[0, 0]
        mask = mask.repeat_interleave(block, 0).repeat_interleave(block, 1)[:tokens, :tokens].tril()
        probs = (x.q.double() @ keys.mT * x.scale).masked_fill(~mask, -float("inf")).softmax(-1)
        wrong = (probs @ values - dense)[:, :, :rows].square().sum((0, 2, 3))
        expected = wrong / dense[:, :, :rows].square().sum()
        assert losses[part, :, blocks - 1].tolist() == pytest.approx(expected.tolist(), abs=1e-6)
    assert (losses[..., 7] == 0).all(), "all blocks"


def test_the_chosen_rules_lose_least_within_the_budget_at_every_length() -> None:
    generator = np.random.default_rng(0)
    for _ in range(5):
        losses, costs = generator.random((4, 5)), generator.random((2, 5))
        costs[:, 0] = 0.1
        chosen = best_rules(losses, costs, 0.4)
        choices = [np.array(rules) for rules in product(range(5), repeat=4)]
        within = [rules for rules in choices if (costs[:, rules].mean(1) <= 0.4).all()]
        best = min(losses[range(4), rules].sum() for rules in within)
        assert losses[range(4), chosen].sum() == pytest.approx(best, rel=2e-3)
        assert (costs[:, chosen].mean(1) <= 0.4 + 1e-6).all()


def test_a_head_that_looks_far_gets_the_wider_span() -> None:
    method = methods.build("moa", block_size=16, sinks=16)
    finder = method.search(**{**SHAPE, "layers": 2})
    x = layer(640, number=1)  # layer 0 has a sliding window
    x.q[:, :2], x.k[:, 0] = 0.0, 0.0  # the first two heads look at everything alike
    angle = torch.arange(640) * 0.004  # less than half a circle
    turn = torch.stack((angle.cos(), angle.sin()), -1)
    x.q[:, 2:], x.k[:, 1] = 0.0, 0.0
    x.q[:, 2:, :, :2], x.k[:, 1, :, :2] = 625 / x.scale * turn, turn  # the others at what lies within about ten tokens
    v = torch.randn(x.k.shape, generator=torch.Generator().manual_seed(0)) + 1
    v[:, :, ::2] *= 3
    finder.observe(x, v)
    result = finder.result()
    assert result["lengths"] == [160, 320, 640, 1280]
    for budget, plan in result["plans"].items():
        assert plan["alphas"][0] == plan["betas"][0] == []
        spans = [alpha + beta * 640 for alpha, beta in zip(plan["alphas"][1], plan["betas"][1], strict=True)]
        if float(budget) >= 0.125:  # below, it pays hardly more than the least
            assert min(spans[:2]) > max(spans[2:]) * (2 if float(budget) >= 0.25 else 1), (budget, spans)
        constrained = [cost for cost, n in zip(plan["spans"], result["lengths"], strict=True) if 32 / n <= float(budget) / 2]
        assert max(constrained, default=plan["spans"][-1]) <= float(budget) + 1e-3
    assert list(result["plans"]) == ["0.5", "0.35", "0.25", "0.18", "0.125", "0.09", "0.0625", "0.045"]


def test_a_search_without_layers_or_of_parts_of_prompts_is_refused() -> None:
    finder = methods.build("moa", block_size=16).search(**SHAPE)
    with pytest.raises(ValueError, match="no layer was seen"):
        finder.result()
    x = layer(100, 200)
    with pytest.raises(ValueError, match="whole prompts, not 100 queries of 200 keys"):
        finder.observe(x, x.k)
    short = methods.build("moa", block_size=16).search(**{**SHAPE, "layers": 1})
    short.budgets = (0.05,)  # type: ignore[attr-defined]
    short.observe(layer(100), layer(100).k)
    with pytest.raises(ValueError, match=r"prompts of 128 tokens are too short for spans of 32 at a budget of 0.05"):
        short.result()


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ({}, 'it has no "alphas"'),
        ({"alphas": [[0, 0, 0, 0]] * 2}, 'it has no "betas"'),
        ({"alphas": [[0, 0, 0, 0]], "betas": [[0, 0, 0, 0]]}, "its alphas are of 1 layers of 4 query heads, not 2 of 4"),
        ({"alphas": [[0, 0]] * 2, "betas": [[0, 0]] * 2}, "its alphas are of 2 layers of 2 query heads, not 2 of 4"),
        ({"alphas": [[0] * 4, []], "betas": [[], [0] * 4]}, "its alphas and betas are of different layers"),
        ({"alphas": [[0, 0, 0, True]] * 2, "betas": [[0] * 4] * 2}, 'it has no "alphas"'),
        ({"alphas": [[0] * 4] * 2, "betas": [[0, 0, 0, 1.5]] * 2}, "its betas must be shares of the prompt, 0 to 1"),
        ({"plans": {}}, 'its "plans" must be rules by budget'),
        ({"plans": [1]}, 'its "plans" must be rules by budget'),
        ({"plans": {"0.5": 3}}, 'its "plans" must be rules by budget'),
    ],
)
def test_what_does_not_fit_is_one_clear_line(result: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        methods.build("moa").load_search(result, **SHAPE)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"budget": 0.5, "sparsity": 0.5}, "sparsity=0.5 and budget=0.5: give one of them"),
        ({"budget": 1.5}, "budget=1.5: must be a share of the prompt"),
        ({"sinks": -1}, "sinks=-1, new_tokens=0: must be at least 0 tokens"),
    ],
)
def test_wrong_knobs_are_one_clear_line(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        methods.build("moa", **knobs)
