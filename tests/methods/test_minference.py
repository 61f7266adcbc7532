"""MInference's patterns against their recipes, and its search on heads whose pattern is known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from attention_kernels.block_index import BlockIndex, causal_mask
from attention_kernels.column_index import ColumnIndex
from attention_kernels.sparse_attention import SparseIndex
from torch import Tensor

import methods
from methods.block_topk import BlockTopK
from methods.parts.base import Grid, LayerInputs
from methods.parts.head_patterns import Pattern, parse_patterns, select_patterns
from methods.parts.release_tiles import with_tiles
from methods.searches.minference_release import kept_masses
from methods.searches.minference_search import CANDIDATES, PatternSearch
from methods.streaming_llm import StreamingLLM
from tests.methods.support import DIM, HEADS, KV_HEADS, LAYERS, layer

SHAPES = [(400, 400), (397, 397), (150, 505), (1, 100), (33, 40)]
SHAPE = {"layers": LAYERS, "heads": HEADS, "kv_heads": KV_HEADS, "head_dim": DIM}


def grid_of(x: LayerInputs, block: int = 16) -> Grid:
    return Grid(q_block=block, k_block=block, q_len=x.q.shape[2], k_len=x.k.shape[2])


def keys_of(index: SparseIndex) -> Tensor:
    """bool [B,H,Mq,K]: what each row keeps."""
    return torch.stack([index.row_keys(row) for row in range(-(-index.q_len // index.q_block))], 2)


def by_recipe(x: LayerInputs, head: int, v: int, s: int, forced: tuple[int, int] = (30, 100)) -> Tensor:
    """bool [Mq,K] of one vertical-slash head, token by token from the attention matrix of the last 64 queries."""
    q_len, k_len, rows = x.q.shape[2], x.k.shape[2], min(64, x.q.shape[2])
    q, k = x.q[0, head, -rows:].double(), x.k[0, head // (HEADS // KV_HEADS)].double()
    position = torch.arange(k_len - rows, k_len)
    future = torch.arange(k_len) > position[:, None]
    probs = (q @ k.T * x.scale).masked_fill(future, -float("inf")).softmax(-1)
    vertical = probs.sum(0)
    distance = position[:, None] - torch.arange(k_len)
    slash = torch.zeros(k_len, dtype=torch.float64).index_add_(0, distance[~future], probs[~future])
    vertical[: forced[0]] = slash[: forced[1]] = float("inf")
    columns = set(vertical.sort(descending=True, stable=True).indices[:v].tolist())
    diagonals = slash.sort(descending=True, stable=True).indices[:s].tolist()
    keys = torch.zeros(-(-q_len // 16), k_len, dtype=torch.bool)
    for row in range(len(keys)):
        first = k_len - q_len + row * 16
        seen = min(first + 16, k_len)
        for o in diagonals:
            low, high = max(0, first - o), min(first + 15 - o, seen - 1)  # keys that whole rows meet
            if low <= high:
                keys[row, low // 16 * 16 : high // 16 * 16 + 16] = True
        keys[row, [key for key in columns if key < first // 16 * 16]] = True
    return keys & causal_mask(q_len, k_len, 16, 16).repeat_interleave(16, 1)[:, :k_len]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("v", "s"), [(40, 120), (7, 3), (0, 1), (300, 5), (100_000, 110)])
def test_vertical_slash_is_the_recipe(shape: tuple[int, int], v: int, s: int) -> None:
    x = layer(*shape)
    index = select_patterns(x, grid_of(x), [Pattern("vertical_slash", v, s)] * HEADS)
    index.validate()
    keys = keys_of(index)[0]
    for head in range(HEADS):
        assert torch.equal(keys[head], by_recipe(x, head, v, s)), head


def test_without_a_sparsity_the_floors_hold_and_with_one_they_do_not() -> None:
    x = layer(397)
    method = methods.build("minference", block_size=16)
    method.load_search({"patterns": [[["vertical_slash", 2, 3]] * HEADS] * LAYERS}, **SHAPE)
    assert torch.equal(keys_of(method.select(x))[0, 1], by_recipe(x, 1, 30, 50))
    small = methods.build("minference", block_size=16, sparsity=0.9)
    small.load_search({"patterns": [[["vertical_slash", 20, 30]] * HEADS] * LAYERS}, **SHAPE)
    small.set_knob(small.calibrates(), 0.1)
    assert torch.equal(keys_of(small.select(x))[0, 1], by_recipe(x, 1, 2, 3))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_is_sinks_and_a_window(shape: tuple[int, int]) -> None:
    x = layer(*shape)
    index = select_patterns(x, grid_of(x), [Pattern("a_shape", 20, 50)] * HEADS)
    index.validate()
    assert isinstance(index, BlockIndex)
    blocks, cols = index.to_mask()[0], torch.arange(-(-shape[1] // 16))
    last = torch.tensor([min(shape[1] - shape[0] + (r + 1) * 16, shape[1]) - 1 for r in range(blocks.shape[1])]) // 16
    own = torch.tensor([(shape[1] - shape[0] + r * 16) // 16 for r in range(blocks.shape[1])])
    expected = (cols < 2) | (cols > (last - 4)[:, None]) | (cols >= own[:, None])
    assert torch.equal(blocks, (expected & (cols <= last[:, None])).expand_as(blocks))
    if shape == (400, 400):
        assert torch.equal(blocks[:1], StreamingLLM(block_size=16, window=50, sinks=20).select(x).to_mask()[0, :1])


def test_block_sparse_keeps_the_best_blocks_of_a_row() -> None:
    x = layer(397)
    index = select_patterns(x, grid_of(x), [Pattern("block_sparse", 5)] * HEADS)
    ranked = BlockTopK(block_size=16, sparsity=0.5)
    ranked.budget = lambda _: tuple(min(5, row + 1) for row in range(25))  # type: ignore[method-assign]
    assert torch.equal(index.to_mask(), ranked.select(x).to_mask())


@pytest.mark.parametrize("shape", [(397, 397), (150, 505)])
def test_heads_of_different_patterns_do_not_meet(shape: tuple[int, int]) -> None:
    x = layer(*shape, batch=2)
    mixed = [
        Pattern("block_sparse", 3),
        Pattern("vertical_slash", 40, 20),
        Pattern("a_shape", 16, 40),
        Pattern("vertical_slash", 5, 60),
    ]
    index = select_patterns(x, grid_of(x), mixed)
    index.validate()
    assert isinstance(index, ColumnIndex) and index.column_counts.tolist() == [[0, 40, 0, 5]] * 2
    for head, pattern in enumerate(mixed):
        unmixed = keys_of(select_patterns(x, grid_of(x), [pattern] * HEADS))
        assert torch.equal(keys_of(index)[:, head], unmixed[:, head]), pattern
    blocks = select_patterns(x, grid_of(x), [mixed[0], mixed[2], Pattern("block_sparse", 7), mixed[2]])
    blocks.validate()
    assert isinstance(blocks, BlockIndex)


def test_the_fallback_is_kept_where_nothing_was_searched() -> None:
    x = layer(300)
    method = methods.build("minference", block_size=16)
    assert method.layer_patterns(0, 2) == (Pattern("vertical_slash", 1000, 6096),) * 2
    assert method.knobs()["patterns"] == "fallback"
    assert bool((method.select(x).density() == 1).all())  # more than a short prompt has


def test_rules_of_the_release() -> None:
    searched = [[["a_shape", 100, 800], ["block_sparse", 100, 0], ["vertical_slash", 500, 700], ["vertical_slash", 30, 800]]]
    method = methods.build("minference", release_rules=True)
    method.load_search({"patterns": searched * LAYERS}, **SHAPE)
    numbers = [(100, 800), (1000, 6096), (500, 700), (30, 800)]
    assert method.layer_patterns(1, HEADS) == tuple(Pattern("vertical_slash", v, s) for v, s in numbers)
    assert method.knobs() == {"patterns": "searched", "release_rules": True, "factor": None}


def test_more_is_kept_as_the_factor_rises() -> None:
    x = layer(637)
    method = methods.build("minference", block_size=16, sparsity=0.5)
    searched = [["a_shape", 100, 200], ["block_sparse", 20, 0], ["vertical_slash", 90, 20], ["vertical_slash", 30, 80]]
    method.load_search({"patterns": [searched] * LAYERS}, **SHAPE)
    knob = method.calibrates()
    densities = []
    for factor in (1e-4, 0.01, 0.1, 0.5, 1.0, 3.0, 2e3):
        method.set_knob(knob, factor)
        index = method.select(x)
        index.validate()
        densities.append(index.density()[0])
    steps = torch.stack(densities).diff(dim=0)
    assert bool((steps >= 0).all()) and bool((steps.sum(0) > 0.5).all())


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ({}, "it has no patterns"),
        ({"patterns": [[["vertical_slash", 1, 2]] * 3] * 2}, "patterns of 2 layers of 3 heads, not 2 of 4"),
        ({"patterns": [[["vertical_slash", 1, 2]] * 4]}, "patterns of 1 layers of 4 heads, not 2 of 4"),
        ({"patterns": [[["slash", 1, 2]] * 4] * 2}, "pattern slash is not known; it must be one of vertical_slash, a_shape"),
        ({"patterns": [[["vertical_slash", -1, 2]] * 4] * 2}, "they must be positive"),
        ({"patterns": [[["vertical_slash", 1]] * 4] * 2}, "patterns must be lists of"),
        ({"patterns": 3}, "patterns must be lists of"),
        ({"patterns": [[["vertical_slash", 1, float("inf")]] * 4] * 2}, "patterns must be lists of"),
        ({"patterns": [[["vertical_slash", 1, 1.5]] * 4] * 2}, "patterns must be lists of"),
        ({"patterns": [[[["a_shape"], 1, 2]] * 4] * 2}, "is not known; it must be one of vertical_slash"),
    ],
)
def test_what_does_not_fit_is_one_clear_line(result: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        methods.build("minference").load_search(result, **SHAPE)


def test_knobs_are_checked() -> None:
    with pytest.raises(ValueError, match="score=loss: must be one of mass, output"):
        methods.build("minference", score="loss")
    with pytest.raises(ValueError, match="search_density=1: must be above 0 and below 1, or null"):
        methods.build("minference", search_density=1)


# -- the search ------------------------------------------------------------------------------------------------------


def planted(tokens: int = 1920) -> LayerInputs:
    """A layer whose four heads look at what one candidate each holds: a few columns past the sinks, what lies nearest, the
    blocks of a query's own topic, and many single columns. Keys and queries are made of marks, one element each."""
    generator = torch.Generator().manual_seed(0)
    q, k = torch.zeros(1, HEADS, tokens, 16), torch.zeros(1, HEADS, tokens, 16)
    place = torch.arange(tokens)
    three_places, scattered = torch.tensor([70, 90, 110]), torch.randperm(tokens, generator=generator)[:200]
    q[0, 0, :, 0], k[0, 0, three_places, 0] = 1.0, 12.0  # attended to by all queries
    turn = torch.stack(((place * 0.0015).cos(), (place * 0.0015).sin()), -1)  # less than half a circle
    q[0, 1, :, :2], k[0, 1, :, :2] = 4444 * turn, turn  # what lies within about ten tokens
    topic = torch.randint(0, 8, (tokens // 64,), generator=generator).repeat_interleave(64)
    q[0, 2, place, topic], k[0, 2, place, topic] = 1.0, 12.0  # the blocks of a topic
    q[0, 3, :, 0], k[0, 3, scattered, 0] = 1.0, 12.0
    return LayerInputs(q=q, k=k, layer=0, scale=1.0)


@pytest.mark.parametrize("score", ["mass", "output"])
def test_the_search_finds_what_was_planted(score: str) -> None:
    x = planted()
    finder = PatternSearch(1, HEADS, block=64, score=score, density=None)
    v = torch.randn(x.k.shape, generator=torch.Generator().manual_seed(1))
    finder.observe(x, v)
    result = finder.result()
    chosen = parse_patterns(result["patterns"], layers=1, heads=HEADS)[0]
    scores = torch.tensor(result["scores"][0])
    assert chosen[2].kind == "block_sparse"
    assert chosen[3] == Pattern("vertical_slash", 3500, 100)
    assert scores[0, 1] > scores[0, [0, 2, 3]].max()  # an A-shape is best at what lies nearest
    assert scores[0, 0] < scores[2, 0]  # and does not hold columns
    assert len({len(row) for row in result["scores"][0]}) == 1 and len(result["densities"]) == len(CANDIDATES)


def test_at_equal_cost_every_candidate_has_the_density_that_was_asked_for() -> None:
    x = planted()
    finder = PatternSearch(1, HEADS, block=16, score="mass", density=0.2)
    finder.observe(x, torch.zeros_like(x.k))
    assert (finder.densities - 0.2).abs().max() < 0.04  # columns and diagonals come in whole blocks
    result = finder.result()
    chosen = parse_patterns(result["patterns"], layers=1, heads=HEADS)[0]
    again = select_patterns(x, grid_of(x), chosen, forced=1920 / 30_000)
    assert (again.density() - 0.2).abs().max() < 0.04  # the budgets are those of the search
    assert chosen[1].kind == "a_shape" and chosen[2].kind == "block_sparse" and chosen[3].kind == "vertical_slash"
    assert chosen[3].first > chosen[3].second


def test_a_search_that_saw_nothing_says_so() -> None:
    with pytest.raises(ValueError, match="no layer was seen"):
        PatternSearch(2, HEADS, block=64, score="mass", density=None).result()


def test_a_layer_that_is_never_seen_has_the_first_candidate() -> None:
    x = planted(640)
    finder, one_layer = (PatternSearch(layers, HEADS, block=64, score="mass", density=None) for layers in (2, 1))
    finder.observe(replace(x, layer=1), torch.zeros_like(x.k))
    one_layer.observe(x, torch.zeros_like(x.k))
    result, one_layer_result = finder.result(), one_layer.result()
    first, seen = parse_patterns(result["patterns"], layers=2, heads=HEADS)
    assert set(first) == {CANDIDATES[0]}
    assert list(seen) == list(parse_patterns(one_layer_result["patterns"], layers=1, heads=HEADS)[0])
    assert result["densities"] == one_layer_result["densities"]  # of what was seen


def test_scores_are_means_over_prompts() -> None:
    x = planted(448)
    v = torch.randn(x.k.shape, generator=torch.Generator().manual_seed(1))
    once, twice = (PatternSearch(1, HEADS, block=64, score="mass", density=0.4) for _ in range(2))
    for finder, times in ((once, 1), (twice, 2)):
        for _ in range(times):
            finder.observe(x, v)
    assert once.result() == twice.result()


# -- as released -----------------------------------------------------------------------------------------------------


def marked(length: int, places: list[int]) -> Tensor:
    return torch.zeros(1, 1, length, dtype=torch.bool).index_fill_(-1, torch.tensor(places), True)


@pytest.mark.parametrize(
    ("diagonals", "row", "keys"),
    [
        ([0, 21], 3, [*range(27, 43), *range(48, 64)]),  # a tile of its own: 43 is a tile and more from 64
        ([0, 10], 3, [*range(38, 64)]),  # lengthened by a whole tile, past the row
        ([0, 16, 48], 3, [*range(16), *range(32, 64)]),  # aligned: blocks
        ([0, 40], 2, [*range(0, 16), *range(32, 48)]),  # a tile never begins before the first key
        ([0, 63], 1, [*range(16, 32)]),  # no query of the row meets it
    ],
)
def test_as_released_a_tile_begins_at_any_key(diagonals: list[int], row: int, keys: list[int]) -> None:
    grid = Grid(q_block=16, k_block=16, q_len=64, k_len=64)
    columns = torch.tensor([[[30, 45, 64]]], dtype=torch.int32)
    index = with_tiles(marked(64, diagonals), columns, torch.tensor([[2]], dtype=torch.int32), grid)
    index.validate()
    singles = [column for column in (30, 45) if column < row * 16]
    assert index.row_keys(row)[0, 0].nonzero().squeeze(1).tolist() == sorted({*keys, *singles})


def test_as_released_fewer_keys_are_computed_for_the_same_columns_and_diagonals() -> None:
    x = layer(400, batch=2)
    method, patterns = (methods.build("minference", block_size=16, as_released=r) for r in (True, False)), []
    for m in method:
        m.load_search({"patterns": [[["vertical_slash", 40, 120], ["vertical_slash", 30, 105]] * 2] * LAYERS}, **SHAPE)
        index = m.select(x)
        index.validate()
        patterns.append(index)
    released, aligned = (index.pairs() for index in patterns)
    assert bool((released < aligned).all())
    mixed = [Pattern("a_shape", 16, 40), Pattern("vertical_slash", 5, 60), Pattern("block_sparse", 3), Pattern("a_shape", 1, 9)]
    index = select_patterns(x, grid_of(x), mixed, tiles=True)
    index.validate()
    keys = keys_of(index)
    for head, pattern in enumerate(mixed):
        alone = keys_of(select_patterns(x, grid_of(x), [pattern] * HEADS, tiles=True))
        assert torch.equal(keys[:, head], alone[:, head]), pattern


def test_the_released_search_keeps_single_diagonals_and_small_blocks() -> None:
    generator = torch.Generator().manual_seed(0)
    length, key = 2528, torch.arange(2528)
    q, k = torch.randn(1, 2, length, 8, generator=generator), torch.randn(1, 1, length, 8, generator=generator)
    x = LayerInputs(q=2 * q, k=k, layer=0, scale=8**-0.5)
    masses = kept_masses(x)[:, 0, 1]
    distance = key[-64:, None] - key
    probs = (x.q[0, 1, -64:] @ k[0, 0].T * x.scale).masked_fill(distance < 0, -float("inf")).softmax(-1)
    slash, vertical = torch.zeros(length).index_add_(0, distance.clamp(min=0).flatten(), probs.flatten()), probs.sum(0)
    slash[:30] = vertical[:30] = float("inf")
    lines = torch.isin(distance, slash.topk(800).indices) | torch.isin(key, vertical.topk(30).indices)
    pooled_q, pooled_k = (t.unflatten(0, (-1, 32)).mean(1) for t in (x.q[0, 1], k[0, 0]))
    best = (pooled_q[-1] @ pooled_k.T).topk(9).indices  # of the last 32 rows, an eighth of 79 blocks
    blocks = torch.isin(key // 32, best).expand_as(lines)
    for number, mask in ((0, (distance <= 800) | (key < 100)), (1, lines), (5, blocks)):
        assert float(masses[number]) == pytest.approx(float((probs * mask)[-28:].sum(-1).mean()), rel=1e-4), number


def test_the_released_search_gives_what_the_release_runs() -> None:
    by_mass, by_output = (methods.build("minference", as_released=True, score=s).search(**SHAPE) for s in ("mass", "output"))
    assert (len(by_mass.candidates), len(by_output.candidates)) == (6, 8)  # type: ignore[attr-defined]
    by_mass.prompts += 1  # type: ignore[attr-defined]
    by_mass.scores[0, 5, 1] = by_mass.scores[0, 2, 2] = 1.0  # type: ignore[attr-defined]
    patterns = by_mass.result()["patterns"][0]
    assert patterns == [["vertical_slash", *n] for n in ((100, 800), (1000, 6096), (100, 750), (100, 800))]
    x = layer(330, number=1)
    v = torch.randn(x.k.shape, generator=torch.Generator().manual_seed(1))
    by_output.observe(x, v)
    off = -torch.tensor(by_output.result()["scores"][1])
    assert not bool(off.any()), "all budgets hold a prompt of 330 tokens"
    assert methods.build("minference", as_released=True).release_rules
    with pytest.raises(ValueError, match="a prompt of 330 tokens: as released the search needs more than the 2500 that"):
        by_mass.observe(x, v)
    with pytest.raises(ValueError, match="as released the search takes whole prompts"):
        by_mass.observe(layer(30, 330), v)
