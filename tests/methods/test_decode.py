"""What every method of decoding promises, and what each of them is."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from methods import decode
from methods.decode.parts.base import StepInputs
from methods.decode.parts.block_vectors import BlockVectors
from tests.methods.decode_support import SPARSE, choose, kept_mask, one_sequence, ready, step
from tests.methods.support import KV_HEADS

LENGTHS = [640, 637, 625, 641]
"""Whole blocks, a partial last block, one token in it, and one more."""
STARTS = (0, 16, 37, 600)


def blocks_of(x: StepInputs, size: int) -> list[int]:
    starts = [0] * x.k.shape[0] if x.starts is None else x.starts.tolist()
    return [-(-(x.k.shape[2] - start) // size) for start in starts]


def true_mass(x: StepInputs, size: int) -> Tensor:
    """Attention that falls on each block of the only sequence, float64 [Hq, blocks]."""
    keys = x.k.double().repeat_interleave(x.q.shape[1] // x.k.shape[1], 1)
    probs = (x.q.double() @ keys.mT * x.scale).softmax(-1)[0, :, 0]
    return torch.nn.functional.pad(probs, (0, -probs.shape[-1] % size)).unflatten(-1, (-1, size)).sum(-1)


@pytest.mark.parametrize("name", SPARSE)
@pytest.mark.parametrize("length", LENGTHS)
def test_budget_and_sparsity_are_kept_to(name: str, length: int) -> None:
    x = step(length)
    blocks = -(-length // 16)
    for budget in (64, 100, 320):
        index = choose(ready(name, block_size=16, budget=budget), x)
        assert index is not None
        index.validate()
        assert bool((index.counts == budget // 16).all())
    for sparsity in (0.5, 0.9):
        index = choose(ready(name, block_size=16, sparsity=sparsity), x)
        assert index is not None and bool((index.counts == round((1 - sparsity) * blocks)).all())


@pytest.mark.parametrize("name", SPARSE)
def test_what_holds_everything_is_dense(name: str) -> None:
    for knobs in ({"budget": 1024}, {"sparsity": 0.0}, {"budget": 640}):
        assert choose(ready(name, block_size=16, **knobs), step(640)) is None
    assert choose(ready(name, block_size=16, budget=624), step(640)) is not None
    assert choose(ready(name), step(40)) is None, "the default budget holds a short cache"


@pytest.mark.parametrize("name", SPARSE)
@pytest.mark.parametrize("knobs", [{"budget": 96}, {"sparsity": 0.7}], ids=str)
def test_a_sequence_does_not_depend_on_its_neighbours(name: str, knobs: dict[str, float]) -> None:
    """Padding of any length, NaN here, changes nothing in what a sequence keeps; a short one keeps all it has."""
    x = step(637, batch=4, starts=STARTS)
    method = ready(name, block_size=16, **knobs)
    index = choose(method, x)
    assert index is not None
    for row, blocks in enumerate(blocks_of(x, 16)):
        single = choose(method, one_sequence(x, row))
        row_mask = kept_mask(index, row, blocks)
        assert bool(row_mask[:, -1].all()), "the newest block"
        assert bool(row_mask.all()) if single is None else torch.equal(row_mask, kept_mask(single, 0, blocks))


@pytest.mark.parametrize("name", SPARSE)
@pytest.mark.parametrize("starts", [None, STARTS])
def test_appending_keys_is_starting_over(name: str, starts: tuple[int, ...] | None) -> None:
    """After any number of steps the state, and so the choice, is that of a method that sees the whole cache at once."""
    first, last = 601, 650  # from inside a block over three edges, and past the room that a state has at first
    method = ready(name, block_size=16, budget=96)
    state = method.start(step(first, batch=4, starts=starts))
    for length in range(first + 1, last + 1):
        x = step(length, batch=4, starts=starts)
        old = x.k.clone()
        x = replace(x, k=x.k.clone())
        x.k[:, :, :-16] = float("nan")  # a step that reads the cache again finds nothing there
        method.extend(state, x)
        x = replace(x, k=old)
        if length % 7 == 0 or length == last:
            grown, fresh = method.select(x, state), choose(method, x)
            assert grown is not None and fresh is not None
            assert torch.equal(grown.counts, fresh.counts) and torch.equal(grown.indices, fresh.indices)


@pytest.mark.parametrize("name", SPARSE)
def test_the_same_choice_twice(name: str) -> None:
    first, second = (choose(ready(name, block_size=16, budget=96), step(637, batch=2)) for _ in range(2))
    assert first is not None and second is not None and torch.equal(first.indices, second.indices)


@pytest.mark.parametrize("name", SPARSE)
def test_no_choice_of_as_many_blocks_keeps_more_mass_than_the_oracle(name: str) -> None:
    x = step(637)
    mass = true_mass(x, 16)
    best = choose(ready("oracle", block_size=16, budget=96, pool="mass"), x)
    other = choose(ready(name, block_size=16, budget=96), x)
    assert best is not None and other is not None
    own = kept_mask(other, 0, 40)
    own = own.repeat_interleave(mass.shape[0] // own.shape[0], 0)
    most = (mass * kept_mask(best, 0, 40)).sum(-1)
    assert bool((most >= (mass * own).sum(-1) - 1e-6).all())
    blind = choose(ready("random", block_size=16, budget=96), x)
    assert blind is not None
    chance = (mass * kept_mask(blind, 0, 40).repeat_interleave(2, 0)).sum(-1).mean()
    if decode.get(name).family == "top-k" and decode.get(name).gate is None:  # an untrained gate knows nothing
        assert (mass * own).sum(-1).mean() > chance


@pytest.mark.parametrize("length", LENGTHS)
def test_quest_bounds_every_score_of_a_page(length: int) -> None:
    x = step(length, batch=2)
    quest = ready("quest")
    bound = quest.scores(x, quest.start(x))  # type: ignore[attr-defined]
    true = (x.q @ x.k.repeat_interleave(2, 1).mT)[:, :, 0]
    padded = torch.nn.functional.pad(true, (0, -length % 16), value=float("-inf")).unflatten(-1, (-1, 16))
    assert bool((bound >= padded.amax(-1) - 1e-4).all())
    q, keys = x.q[:, :, 0, None], torch.stack([page.aminmax(dim=2)[0] for page in x.k.split(16, 2)], 2)
    tops = torch.stack([page.amax(2) for page in x.k.split(16, 2)], 2)
    low, top = (v.repeat_interleave(2, 1) for v in (keys, tops))
    torch.testing.assert_close(bound, torch.maximum(q * low, q * top).sum(-1), atol=1e-4, rtol=1e-4)


def test_quest_shared_ranks_by_the_mean_of_the_group() -> None:
    x = step(637, batch=2)
    own, shared = ready("quest"), ready("quest", shared=True)
    scores = own.scores(x, own.start(x))  # type: ignore[attr-defined]
    mean = scores.unflatten(1, (KV_HEADS, -1)).mean(2)
    torch.testing.assert_close(shared.scores(x, shared.start(x)), mean)  # type: ignore[attr-defined]


def test_quest_keeps_three_pages_and_two_dense_layers() -> None:
    index = choose(ready("quest", budget=16), step(637))
    assert index is not None and bool((index.counts == 3).all())
    assert ready("quest").dense_layers == 2 and ready("quest").budget == 1024


def test_streaming_keeps_sinks_and_the_latest() -> None:
    index = choose(ready("streaming", budget=96, sinks=20), step(637))
    assert index is not None
    assert kept_mask(index, 0, 40)[0].nonzero()[:, 0].tolist() == [0, 1, 36, 37, 38, 39]
    index = choose(ready("streaming", budget=48, sinks=0), step(637))
    assert index is not None and kept_mask(index, 0, 40)[0].nonzero()[:, 0].tolist() == [37, 38, 39]


def test_random_draws_anew_for_each_step_layer_head_and_seed() -> None:
    base = choose(ready("random", budget=96), step(637))
    assert base is not None and not torch.equal(base.indices[:, 0], base.indices[:, 1])
    for other, knobs in ((step(638), {}), (step(637, number=3), {}), (step(637), {"seed": 1})):
        index = choose(ready("random", budget=96, **knobs), other)
        assert index is not None and not torch.equal(index.indices, base.indices)


def test_per_block_grows_without_losing_anything() -> None:
    kept_values = BlockVectors(torch.randn(2, 3, 4, 5))
    before = kept_values.values.clone()
    for block in range(4, 60):
        kept_values.reserve(block + 1)
        kept_values.write(torch.tensor([block, block - 1]), torch.full((2, 3, 5), float(block)))
    assert torch.equal(kept_values.values[:, :, :3], before[:, :, :3])
    assert kept_values.values.shape == (2, 3, 60, 5)
    assert bool((kept_values.values[0, :, 59] == 59).all()) and bool((kept_values.values[1, :, 59] == 0).all())


@pytest.mark.parametrize(
    ("name", "knobs", "message"),
    [
        ("quest", {"budget": 8}, "budget=8: must hold at least one block of 16 tokens"),
        ("quest", {"budget": 64, "sparsity": 0.5}, "budget=64 and sparsity=0.5: give one of them"),
        ("oracle", {"sparsity": 1.0}, "sparsity=1.0: must be at least 0"),
        ("oracle", {"pool": "mean"}, "pool=mean: must be one of max, mass"),
        ("random", {"block_size": 24}, "block_size=24: must be one of 16, 32, 64, 128"),
        ("streaming", {"sinks": -1}, "sinks=-1: must be at least 0"),
        ("streaming", {"dense_layers": -1}, "dense_layers=-1"),
        ("streaming", {"window": 4}, "decode method streaming has no knob window; it has: .*budget, .*sinks"),
        ("quests", {}, "unknown decode method quests; choose one of: dense, .*quest"),
    ],
)
def test_knobs_are_checked(name: str, knobs: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode.build(name, **knobs)


def test_every_method_says_what_it_is() -> None:
    assert [name for name in decode.names() if decode.get(name).family == "none"] == ["dense"]
    for name in decode.names():
        assert decode.get(name).paper and decode.get(name).__doc__
    with pytest.raises(ValueError, match="quest has no trained weights"):
        ready("quest").load({}, layers=1, heads=1, kv_heads=1, head_dim=8)


@pytest.mark.gpu
@pytest.mark.parametrize("starts", [None, STARTS])
@pytest.mark.parametrize("name", SPARSE)
def test_steps_never_wait_for_the_device_and_choose_as_on_a_cpu(name: str, starts: tuple[int, ...] | None) -> None:
    method, own = ready(name, block_size=16, budget=96).to("cuda"), ready(name, block_size=16, budget=96)
    state = method.start(step(637, batch=4, starts=starts, device="cuda"))
    expected = choose(own, step(639, batch=4, starts=starts))
    assert expected is not None
    first, second = (step(length, batch=4, starts=starts, device="cuda") for length in (638, 639))
    method.extend(state, first)
    method.select(first, state)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        method.extend(state, second)
        index = method.select(second, state)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert index is not None
    same = (index.indices.cpu() == expected.indices).float().mean()
    assert same == 1 if decode.get(name).family == "static" else same > 0.99
