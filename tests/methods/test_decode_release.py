"""Methods of decoding as released: what their authors' code does beside the rule, in hand-made cases."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from methods import decode
from methods.decode.parts.base import StepInputs
from methods.decode.seer_r import SeerR
from methods.parts.rope import rope_apply
from tests.methods.decode_support import choose, kept_mask, one_sequence, ready, step
from tests.methods.support import DIM, HEADS, KV_HEADS

BLOCK = 16


def seer_r(**knobs: object) -> SeerR:
    method = ready("seer_r", block_size=BLOCK, as_released=True, **knobs)
    assert isinstance(method, SeerR)
    return method


def key_of(method: SeerR, x: StepInputs, keys: Tensor, position: int) -> Tensor:
    """The gate's vector [Hkv,D] of one block from its pre-RoPE keys [Hkv,n,D], turned by a position."""
    assert x.rope is not None
    pooled = torch.cat((keys.amax(1), keys.amin(1), keys.mean(1)), -1)[None, :, None]
    cos, sin = x.rope.table(position + 1, x.k.device)
    return method.gates[x.layer].keys(pooled, cos[position:], sin[position:])[0, :, 0]


@pytest.mark.parametrize("number", [0, 2])
def test_seer_r_s_unfinished_block_is_zeros_and_its_completion_is_the_releases(number: int) -> None:
    method, last = seer_r(budget=32), step(112, number=number)
    state = method.start(step(101, number=number))  # five tokens of the seventh block
    for length in range(102, 113):
        assert not bool(state.keys.values[0, :, 6].any())
        method.extend(state, step(length, number=number))
    assert last.rope is not None
    cos, sin = last.rope.cos_sin(torch.arange(112))
    plain = rope_apply(last.k[0].double(), cos.double(), -sin.double()).float()
    own = plain[:, 96:112]
    if number > 0:  # the first key of the block is gone, and a vector of zeros is pooled beside the other fifteen
        own = torch.cat((own[:, 1:], torch.zeros_like(own[:, :1])), 1)
    torch.testing.assert_close(state.keys.values[0, :, 6], key_of(method, last, own, 111), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(state.keys.values[0, :, 5], key_of(method, last, plain[:, 80:96], 80), rtol=1e-4, atol=1e-4)
    for length in range(113, 129):  # a block that is generated whole loses nothing
        method.extend(state, step(length, number=number))
    cos, sin = last.rope.cos_sin(torch.arange(128))
    whole = rope_apply(step(128, number=number).k[0].double(), cos.double(), -sin.double()).float()[:, 112:]
    expected = key_of(method, step(128, number=number), whole, 127)
    torch.testing.assert_close(state.keys.values[0, :, 7], expected, rtol=1e-4, atol=1e-4)


def test_seer_r_keeps_the_newest_and_the_first_block_beside_the_budget() -> None:
    x, method = step(330, batch=3, starts=(0, 3, 200)), seer_r(budget=64)
    state = method.start(x)
    index = method.select(x, state)
    assert index is not None
    scores, sizes = method.scores(x, state), set()
    for row, blocks in enumerate((21, 21, 9)):
        own = scores[row, :, :blocks]
        assert not bool(own[:, -1].any()), "a block that is not full has logit 0"
        expected = torch.zeros(KV_HEADS, blocks, dtype=torch.bool).scatter_(1, own.topk(4).indices, True)
        sizes |= set((expected.sum(1) + ~expected[:, -1]).tolist())
        expected[:, [0, -1]] = True
        assert torch.equal(kept_mask(index, row, blocks), expected)
        alone = one_sequence(x, row)
        assert torch.equal(kept_mask(choose(method, alone), 0, blocks), expected)  # type: ignore[arg-type]
    assert sizes == {4, 5}
    threshold = seer_r(threshold=0.05)
    mask = kept_mask(threshold.select(one_sequence(x, 0), threshold.start(one_sequence(x, 0))), 0, 21)  # type: ignore[arg-type]
    share = scores[0].softmax(-1)  # the newest among them
    expected = share > 0.05
    expected[:, [0, -1]] = True
    assert torch.equal(mask, expected)
    assert seer_r(sparsity=0.8).best(scores, x).counts.unique().tolist() == [2, 4], "at a sparsity both count"


def test_seer_r_takes_the_releases_budget_unless_a_threshold_is_given() -> None:
    assert decode.build("seer_r", as_released=True).budget == 4096
    assert decode.build("seer_r", as_released=True, threshold=2e-3).budget is None
    recorded = decode.build("seer_r", as_released=True, threshold=2e-3).knobs()
    assert recorded["first"] is True
    assert decode.build("seer_r", as_released=True, **recorded).knobs() == recorded, "a row's settings build it again"


def test_quest_s_newest_page_competes() -> None:
    x = step(200)
    k = x.k.clone()
    k[:, :, 192:] = 0.0  # of no use to any query: their bound is 0
    x = replace(x, k=k)
    method, plain = (decode.build("quest", budget=64, as_released=released) for released in (True, False))
    mask, usual = kept_mask(choose(method, x), 0, 13), kept_mask(choose(plain, x), 0, 13)  # type: ignore[arg-type]
    best = method.scores(x, method.start(x))[0].topk(4).indices  # type: ignore[attr-defined]
    assert torch.equal(mask, torch.zeros(HEADS, 13, dtype=torch.bool).scatter_(1, best, True))
    assert not bool(mask[:, -1].any()) and bool(usual[:, -1].all())


def test_quest_drops_a_page_of_a_cache_that_fills_its_last_in_part() -> None:
    method = decode.build("quest", budget=128, as_released=True)
    sizes = {length: choose(method, step(length)) for length in (48, 64, 65, 127, 128)}
    assert [None if index is None else index.counts.unique().tolist() for index in sizes.values()] == [
        None,
        None,
        [4],
        [7],
        None,
    ]
    x = step(120, batch=2, starts=(0, 56))  # 64 tokens in the second: all of its pages
    index = choose(method, x)
    assert index is not None and index.counts[:, :, 0].tolist() == [[7] * HEADS, [4] * HEADS]
    assert bool(kept_mask(index, 1, 4).all())


def test_streaming_keeps_the_newest_token_beside_sinks_and_window() -> None:
    method = decode.build("streaming", budget=64, as_released=True)  # 4 sinks, 60 before the newest
    x = step(330, batch=2, starts=(0, 43))  # 287 tokens in the second
    index = choose(method, x)
    assert index is not None
    for row, (length, blocks) in enumerate(((330, 21), (287, 18))):
        chosen = kept_mask(index, row, blocks)[0].nonzero().squeeze(1).tolist()
        assert chosen == [0, *range((length - 61) // BLOCK, blocks)]
    usual = decode.build("streaming", budget=64)
    assert choose(usual, x).counts.unique().tolist() == [4]  # type: ignore[union-attr]
    assert choose(decode.build("streaming", as_released=True), step(1000)) is None
    assert x.q.shape[-1] == DIM
