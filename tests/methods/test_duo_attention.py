"""DuoAttention: which heads are dense, what the others keep, and what a sparsity makes of both."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attention_kernels.block_index import BlockIndex
from attention_kernels.dense import dense_attention

import methods
from methods.duo_attention import DuoAttention
from methods.streaming_llm import StreamingLLM
from tests.methods.support import DIM, HEADS, KV_HEADS, LAYERS, layer, search

SHAPE = {"layers": LAYERS, "heads": HEADS, "kv_heads": KV_HEADS, "head_dim": DIM}
NEEDS = [[0.1, 0.9], [0.4, 0.2]]
"""Of two layers with two KV heads."""


def duo(needs: list[list[float]] = NEEDS, *, kv_heads: int = KV_HEADS, **knobs: object) -> DuoAttention:
    method = methods.build("duo_attention", **{"block_size": 16, "sinks": 32, "recent": 64, **knobs})
    assert isinstance(method, DuoAttention)
    method.load_search({"heads": needs}, **{**SHAPE, "layers": len(needs), "kv_heads": kv_heads})
    return method


def dense_heads(index: BlockIndex | None) -> list[bool]:
    return [True] * KV_HEADS if index is None else (index.density()[0] == 1).tolist()


@pytest.mark.parametrize(
    ("streaming", "dense"),
    [
        (0.0, [[1, 1], [1, 1]]),
        (0.25, [[0, 1], [1, 1]]),
        (0.5, [[0, 1], [1, 0]]),
        (0.75, [[0, 1], [0, 0]]),
        (1.0, [[0, 0], [0, 0]]),
    ],
)
def test_the_heads_that_need_least_stream(streaming: float, dense: list[list[int]]) -> None:
    method = duo(streaming=streaming)
    for number in range(LAYERS):
        index = method.select(layer(397, number=number, batch=2))
        assert dense_heads(index) == [bool(d) for d in dense[number]]
        if index is not None:
            index.validate()
            assert index.counts.shape[:2] == (2, KV_HEADS)


@pytest.mark.parametrize("shape", [(397, 397), (150, 505)])
def test_streaming_heads_keep_sinks_and_window(shape: tuple[int, int]) -> None:
    x = layer(*shape)
    result = duo().select(x)
    assert result is not None
    expected = StreamingLLM(block_size=16, window=64, sinks=32).select(x)
    assert torch.equal(result.to_mask()[:, 0], expected.to_mask()[:, 0])


@pytest.mark.parametrize("length", [640, 2000, 4001])
@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.7, 0.8, 0.9, 0.95])
def test_the_density_over_all_heads_is_as_asked(length: int, sparsity: float) -> None:
    needs = [[0.1, 0.9], [0.4, 0.2], [0.3, 0.35], [0.8, 0.7]]
    method = duo(needs, sparsity=sparsity)
    result = [method.select(layer(length, number=number)) for number in range(4)]
    densities = [1.0 if index is None else float(index.density().mean()) for index in result]
    assert sum(densities) / 4 == pytest.approx(1 - sparsity, abs=0.005)


def test_more_heads_are_dense_as_more_is_kept_the_most_needed_first() -> None:
    x, before = [layer(4001, number=n) for n in range(LAYERS)], set()
    sizes = []
    for sparsity in (0.9, 0.7, 0.5, 0.2):
        method = duo(sparsity=sparsity)
        dense = {(n, h) for n in range(LAYERS) for h, full in enumerate(dense_heads(method.select(x[n]))) if full}
        assert before <= dense
        before = dense
        sizes.append(len(dense))
    assert sizes == [0, 1, 1, 3]
    assert before == {(0, 1), (1, 0), (1, 1)}


def test_where_streaming_heads_keep_too_much_their_window_shrinks() -> None:
    x = layer(397)
    index = duo(sparsity=0.9, recent=256).select(x)
    assert index is not None
    assert (index.density() - 0.1).abs().max() < 0.01
    expected = StreamingLLM(block_size=16, sparsity=0.9, sinks=32).select(x)
    assert torch.equal(index.to_mask(), expected.to_mask())


def test_the_search_measures_what_streaming_loses() -> None:
    method = methods.build("duo_attention", block_size=16, sinks=16, recent=32)
    result = search(method, 300)
    x = layer(300, number=1, seed=1)
    v = torch.randn(x.k.shape, generator=torch.Generator().manual_seed(1))
    mask = StreamingLLM(block_size=16, window=32, sinks=16).select(x).to_mask()[0, 0]
    mask = mask.repeat_interleave(16, 0).repeat_interleave(16, 1)[:300, :300].tril()
    keys, values = (t.double().repeat_interleave(2, 1) for t in (x.k, v))
    probs = (x.q.double() @ keys.mT * x.scale).masked_fill(~mask, -float("inf")).softmax(-1)
    dense = dense_attention(x.q.double(), x.k.double(), v.double(), scale=x.scale, kernel="reference")
    wrong = (probs @ values - dense).square().sum((0, 2, 3))
    expected = (wrong.unflatten(0, (2, 2)).sum(-1) / dense.square().sum()).sqrt()
    assert result["heads"][1] == pytest.approx(expected.tolist(), abs=2e-5)
    assert (result["sinks"], result["recent"]) == (16, 32)


def test_the_search_ranks_a_head_that_looks_far_above_one_that_looks_near() -> None:
    method = methods.build("duo_attention", block_size=16, sinks=16, recent=64)
    finder = method.search(**{**SHAPE, "layers": 1})
    x = layer(640)
    x.q[:, :2], x.k[:, 0] = 0.0, 0.0  # the first KV head looks at everything alike
    angle = torch.arange(640) * 0.004  # less than half a circle
    turn = torch.stack((angle.cos(), angle.sin()), -1)
    x.q[:, 2:], x.k[:, 1] = 0.0, 0.0
    x.q[:, 2:, :, :2], x.k[:, 1, :, :2] = 625 / x.scale * turn, turn  # the second at what lies within about ten tokens
    finder.observe(x, torch.randn(x.k.shape, generator=torch.Generator().manual_seed(0)))
    far, near = finder.result()["heads"][0]
    assert far > 3 * near


def test_a_layer_of_a_sliding_window_has_no_heads_to_rank() -> None:
    finder = methods.build("duo_attention", block_size=16, sinks=16, recent=64).search(**SHAPE)
    with pytest.raises(ValueError, match="no layer was seen"):
        finder.result()
    x = layer(640, number=1)
    finder.observe(x, torch.randn(x.k.shape, generator=torch.Generator().manual_seed(0)))
    result = finder.result()
    assert result["heads"][0] == [] and len(result["heads"][1]) == 2
    method = methods.build("duo_attention", sparsity=0.5, block_size=16, sinks=16, recent=64)
    method.load_search(result, **SHAPE)
    index = method.select(x)
    assert index is not None
    assert index.density().mean() == pytest.approx(0.5, abs=0.03)  # of the layer there is, not of both


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ({}, 'it has no "heads"'),
        ({"heads": [[], []]}, "it is of 2 layers of 0 KV heads, not 2 of 2"),
        ({"heads": 3}, 'it has no "heads"'),
        ({"heads": [[1, 2]]}, "it is of 1 layers of 2 KV heads, not 2 of 2"),
        ({"heads": [[1, 2, 3]] * 2}, "it is of 2 layers of 3 KV heads, not 2 of 2"),
        ({"heads": [[1, float("nan")]] * 2}, "its numbers must be finite"),
    ],
)
def test_what_does_not_fit_is_one_clear_line(result: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        methods.build("duo_attention").load_search(result, **SHAPE)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"streaming": 1.5}, "streaming=1.5: must be a share of the KV heads"),
        ({"streaming": 0.5, "sparsity": 0.5}, "sparsity=0.5 and streaming=0.5: give one of them"),
        ({"recent": 0}, "sinks=128, recent=0: must be at least 0 and 1 tokens"),
    ],
)
def test_knobs_are_checked(knobs: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        methods.build("duo_attention", **knobs)


def test_without_numbers_it_says_which_command_makes_them() -> None:
    with pytest.raises(ValueError, match=r"`python -m harness job=search_heads method=duo_attention` makes"):
        methods.build("duo_attention").select(layer(100))


# -- ties ------------------------------------------------------------------------------------------------------------


def tied(*, seed: int = 0, **knobs: object) -> DuoAttention:
    """Return a method whose 24 layers of 4 heads have 1.0 in every other head, as released files have, and less elsewhere."""
    return duo([[1.0, 0.5 - at / 100, 1.0, 0.1] for at in range(24)], kv_heads=4, seed=seed, streaming=0.75, **knobs)


def dense_layers(method: DuoAttention) -> list[int]:
    assert method.ranks is not None
    dense, _ = method.split({"q_block": 16, "k_block": 16, "q_len": 640, "k_len": 640})
    return [at for at, ranks in enumerate(method.ranks) for rank in ranks if rank < dense]


@pytest.mark.parametrize("as_released", [False, True])
def test_heads_of_equal_numbers_are_dense_in_every_third_of_the_layers(as_released: bool) -> None:
    for seed in range(3):
        layers = dense_layers(tied(seed=seed, as_released=as_released))
        assert len(layers) == 24 and {at // 8 for at in layers} == {0, 1, 2}
    assert dense_layers(tied(seed=1)) == dense_layers(tied(seed=1)) != dense_layers(tied(seed=2))
    assert tied().knobs()["ties"] == "seeded"
    assert "ties" not in duo().knobs(), "rows of a file without ties are as before"


def test_the_order_of_ties_is_the_releases_at_its_seed() -> None:
    # numpy's first draws at the release's seed, 42: .37 .95 .73 .60
    for as_released in (False, True):
        assert duo([[1.0, 1.0], [1.0, 1.0]], seed=42, as_released=as_released).ranks == ((3, 0), (1, 2))
    near = [[0.3, 0.3 - 5e-7], [0.3 - 9e-7, 0.2]]
    assert duo(near, seed=42).ranks == ((0, 1), (2, 3))
    assert duo(near, seed=42, as_released=True).ranks == ((1, 0), (2, 3))  # .30000037 .30000045 .29999983
    assert duo([[1.7, 1.0], [-0.2, 0.0]], seed=42, as_released=True).ranks == ((1, 0), (2, 3))  # cut to 0 and 1 first


def test_as_released_the_dense_heads_are_those_at_or_above_the_quantile() -> None:
    needs = [[at / 10, at / 10 + 0.05] for at in range(6)]
    grid = {"q_block": 16, "k_block": 16, "q_len": 640, "k_len": 640}
    dense = {s: duo(needs, streaming=s, as_released=True).split(grid)[0] for s in (0.0, 0.1, 0.5, 1.0)}
    assert dense == {0.0: 12, 0.1: 10, 0.5: 6, 1.0: 0}  # 0.1 of eleven steps lies above the second number
    assert duo(needs, streaming=0.1).split(grid)[0] == 11
    released = methods.build("duo_attention", as_released=True)
    assert (released.streaming, released.sinks, released.recent) == (0.5, 64, 256)


def test_in_a_chunk_of_the_prompt_streaming_heads_see_everything() -> None:
    method, x = duo(streaming=1.0, prefill_chunk=128, sinks=16, recent=32), layer(397)
    index = method.select(x)
    assert index is not None
    index.validate()
    rows = index.to_mask()[0, 0].int().tolist()
    assert rows[7] == [1] * 8 + [0] * 17, "the first chunk, of eight blocks"
    assert rows[8] == [1, *[0] * 5, *[1] * 3, *[0] * 16] and rows[15] == [1, *[0] * 5, *[1] * 10, *[0] * 9]
    assert rows[24] == [1, *[0] * 21, 1, 1, 1], "the fourth begins with token 384"
    assert dense_heads(duo(streaming=1.0, prefill_chunk=32_000).select(x)) == [True] * KV_HEADS
    for knobs, message in (
        ({"prefill_chunk": 0}, "must be at least 1 token"),
        ({"sparsity": 0.5, "prefill_chunk": 9}, "give one"),
    ):
        with pytest.raises(ValueError, match=message):
            methods.build("duo_attention", **knobs)
