"""What methods do where their releases differ from the rule, each with numbers worked by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from attention_kernels.block_index import BlockIndex, causal_mask

import methods
from methods import xattention
from methods.flexprefill import FlexPrefill
from methods.parts.base import Knob, LayerInputs, Method
from methods.parts.top_p import late_top_p_mask, top_p_mask
from methods.seer import Seer
from tests.methods.support import DIM, HEADS, KV_HEADS, LAYERS, gates, layer

SETTINGS: dict[str, tuple[int, dict[str, Any]]] = {
    "xattention": (128, {"threshold": 0.9, "stride": 8}),
    "sparge": (64, {"rule": "topk", "topk": 0.5, "similar": -0.1}),
    "flash_prefill": (128, {"alpha": 0.18, "sinks": 2, "window": 4, "last": 2}),
    "flexprefill": (128, {"gamma": 0.95, "tau": 0.1, "min_budget": 1024}),
    "seer": (64, {"selection": "threshold", "threshold": 5e-4, "last": 2}),
    "moba": (64, {"topk": 12, "block": 4096, "exact": True}),
    "streaming_llm": (64, {"window": 2000, "sinks": 4}),
    "tri_shape": (64, {"window": 3968, "sinks": 128, "last": 100}),
    "blasst": (128, {"factor": 1000.0}),
}


def released(name: str, **knobs: Any) -> Method:
    """The method as released, with weights where it needs them."""
    method = methods.build(name, as_released=True, **knobs)
    if method.weights is not None:
        method.load(gates(method.block_size), layers=LAYERS, heads=HEADS, kv_heads=KV_HEADS, head_dim=DIM)
    return method


def mask_of(method: Method, x: LayerInputs) -> torch.Tensor:
    index = method.select(x)
    assert isinstance(index, BlockIndex)
    index.validate()
    return index.to_mask()


@pytest.mark.parametrize("name", SETTINGS)
def test_the_settings_are_the_releases_own(name: str) -> None:
    method, (block, knobs) = methods.build(name, as_released=True), SETTINGS[name]
    assert method.block_size == block and method.as_released
    assert knobs.items() <= method.knobs().items()
    calibrated = methods.build(name, as_released=True, sparsity=0.5)
    assert calibrated.sparsity == 0.5, "the native knob gives way"
    assert methods.build(name, as_released=True, block_size=32).block_size == 32, "what is given wins"


def test_another_rule_than_the_releases_leaves_its_number_out() -> None:
    by_mass = methods.build("sparge", as_released=True, rule="cdf")
    assert {"cdf": 0.98, "similar": 0.6}.items() <= by_mass.knobs().items()
    assert methods.build("seer", as_released=True, selection="nz_ratio", nz_ratio=0.1).knobs()["threshold"] is None
    assert methods.build("xattention", as_released=True, thresholds="searched").knobs()["threshold"] is None
    assert methods.build("seer", as_released=True, threshold=2e-3).knobs()["threshold"] == 2e-3


def test_xattention_keeps_one_block_more_where_the_first_counts_late() -> None:
    """Of 1, .85 is to be reached. The rule: blocks 0 and 4 have .4, block 1 makes it .9. The release begins with block 4 alone,
    keeps block 1 by the 0 before that, block 0 by .3, block 2 by .3 + .5, and block 3 not, by .3 + .5 + .1."""
    scores = torch.tensor([[0.10, 0.50, 0.05, 0.05, 0.30]])
    both, diagonal = torch.tensor([[1, 0, 0, 0, 1]]).bool(), torch.tensor([[0, 0, 0, 0, 1]]).bool()
    assert top_p_mask(scores, both, 0.85).int().tolist() == [[1, 1, 0, 0, 1]]
    assert (late_top_p_mask(scores, diagonal, 0.85) | both).int().tolist() == [[1, 1, 1, 0, 1]]


def test_xattention_does_so_in_the_first_chunk_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = (1000, 4001, 16_384, 16_385, 32_768, 65_536, 131_072, 1 << 20)
    assert [xattention.chunk_tokens(n) for n in tokens] == [2048, 4096, 16_384, 8192, 8192, 4096, 2048, 2048]
    x, knobs = layer(320), {"block_size": 16, "threshold": 0.7}
    plain, late = (methods.build("xattention", as_released=on, **knobs) for on in (False, True))
    assert (mask_of(late, x) | ~mask_of(plain, x)).all(), "all of 320 tokens are in its first chunk"
    monkeypatch.setattr(xattention, "chunk_tokens", lambda tokens: 128)
    by_rule, as_released = mask_of(plain, x), mask_of(late, x)
    assert torch.equal(by_rule[..., 8:, :], as_released[..., 8:, :])
    more = (as_released.int() - by_rule.int())[..., :8, :].sum(-1)
    assert more.min() >= 0 and more[..., 3:].float().mean() > 0.5


@pytest.mark.parametrize(("block", "shape"), [(16, (16, 32)), (64, (64, 128)), (128, (128, 64))])
def test_sparge_has_the_block_shapes_of_its_kernels(block: int, shape: tuple[int, int]) -> None:
    grid = methods.build("sparge", as_released=True, block_size=block).grid(layer(256))
    assert (grid["q_block"], grid["k_block"]) == shape


def test_sparge_keeps_a_last_block_that_is_not_whole() -> None:
    """Blocks of 16 queries and 32 keys, so few that each row keeps its best one and its own."""
    tenth = released("sparge", block_size=16, topk=0.1)
    assert (mask_of(tenth, layer(256)).sum(-1) <= 2).all()
    assert mask_of(tenth, layer(250))[..., -1, :].all(), "the last 10 queries see everything"
    halved = mask_of(tenth, layer(240))  # 15 query blocks, and a last key block of 16 tokens: kept, and never the best
    assert (halved[..., -1, :].sum(-1) == 2).all() and halved[..., -1, -1].all()
    plain = methods.build("sparge", block_size=16, rule="topk", topk=0.1)
    assert not mask_of(plain, layer(250))[..., -1, :].all()


def test_flexprefill_calls_a_head_with_a_block_of_no_attention_vertical_slash() -> None:
    x = layer(128)
    keys = x.k.clone()
    keys[:, :, 32:48] = -1e4
    one_way = replace(x, q=x.q.abs(), k=keys)  # every query is as far from block 2 as can be
    aware = []
    for as_released in (False, True):
        method = methods.build("flexprefill", as_released=as_released, block_size=16, tau=1.0, min_budget=16)
        assert isinstance(method, FlexPrefill)
        pooled = one_way.k.unflatten(2, (8, 16)).mean(3)
        aware.append(method._patterns(one_way, pooled, 1)[2])
    assert aware[0].all() and not aware[1].any()


def test_flexprefill_counts_by_128_tokens_whatever_the_block() -> None:
    """All 512 keys alike: 461 of them hold nine tenths, which is 461 // 128 + 1 = 4 blocks in the release, of any size."""
    x = layer(512)
    x = replace(x, k=torch.zeros_like(x.k))
    counts = []
    for as_released in (False, True):
        method = methods.build("flexprefill", as_released=as_released, block_size=32, gamma=0.9, tau=0.0, min_budget=0)
        assert isinstance(method, FlexPrefill)
        counts.append(int(method._patterns(x, torch.zeros(1, 2, 16, 16), 1)[0][0, 0].sum()))
    assert counts[1] == 4 and counts[0] > 12


def test_seer_rounds_probabilities_to_the_models_type(monkeypatch: pytest.MonkeyPatch) -> None:
    """1 / (1 + e^1.09375) = .25092 is above .2505; as bfloat16 it is .25."""
    x = layer(32)
    x = replace(x, q=x.q.bfloat16(), k=x.k.bfloat16())
    logits = torch.tensor([[0.0, -float("inf")], [0.0, 1.09375]]).expand(1, 4, 2, 2)
    monkeypatch.setattr(Seer, "_logits", lambda self, x: logits)
    method = released("seer", block_size=16, threshold=0.2505, last=0)
    assert mask_of(method, x).int().tolist() == [[[[1, 0], [0, 1]]] * 4]
    assert (logits.softmax(-1)[..., 1, 0] > 0.2505).all()


def test_floors_do_not_shrink_for_a_sparsity() -> None:
    flash = methods.build("flash_prefill", as_released=True, sparsity=0.9, block_size=16)
    flash.set_knob(Knob("alpha", 0.0, 2.0, rising=False), 1.1)  # nothing but sinks, window and last rows
    counts = mask_of(flash, layer(320))[0, 0].sum(-1)
    assert counts.tolist() == [min(row, 6) for row in range(1, 19)] + [19, 20]
    shape = mask_of(released("tri_shape", block_size=16, sparsity=0.9, last=48), layer(320))[0, 0].sum(-1)
    assert shape.tolist() == [1] * 17 + [18, 19, 20], "the full rows alone are more than a tenth of the blocks"
    seer = released("seer", block_size=16, sparsity=0.9)
    seer.set_knob(Knob("threshold", 0.0, 1.0, rising=False), 1.0)
    assert mask_of(seer, layer(64))[0, 0].int().tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]


@pytest.mark.parametrize("name", [name for name in SETTINGS if name != "blasst"])
def test_as_released_sees_no_future_and_at_sparsity_zero_keeps_everything(name: str) -> None:
    x = layer(300)
    index = released(name, block_size=16).select(x)
    if isinstance(index, BlockIndex):
        index.validate()
    full = released(name, block_size=16, sparsity=0.0).select(x)
    if isinstance(full, BlockIndex):
        causal = causal_mask(full.q_len, full.k_len, full.q_block, full.k_block)
        assert torch.equal(full.to_mask(), causal.expand_as(full.to_mask()))
