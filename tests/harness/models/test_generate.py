"""Batched generation of prompts of different lengths equals transformers' own, one by one."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
import torch

from harness.core.errors import UserError
from harness.models.bridge import Bridge
from harness.models.generate import CHECK_EVERY, Generation, batches, generate
from harness.models.loading import LoadedModel, wrap_model
from tests.harness.tiny import FAMILIES, Fixed, load, shared, tokens

pytestmark = pytest.mark.filterwarnings("ignore")

LENGTHS = (33, 7, 1, 50, 33)


def prompts() -> list[list[int]]:
    return [tokens(n, seed=i).tolist() for i, n in enumerate(LENGTHS)]


@lru_cache
def expected_of(family: str) -> list[list[int]]:
    """What transformers' own generate makes of each prompt: 8 tokens, without a stop id."""
    return [one_by_one(shared(family, torch.float64), prompt, 8, set()) for prompt in prompts()]


def one_by_one(loaded: LoadedModel, prompt: list[int], max_new: int, stop: set[int]) -> list[int]:
    """Greedy decoding by transformers' generate with eager attention."""
    loaded.model.set_attn_implementation("eager")
    try:
        out = loaded.model.generate(
            torch.tensor([prompt]),
            max_new_tokens=max_new,
            do_sample=False,
            eos_token_id=sorted(stop) or None,
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            pad_token_id=0,
        )[0, len(prompt) :].tolist()
    finally:
        loaded.model.set_attn_implementation("sdpa")
    return out[:-1] if out and out[-1] in stop else out


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch_tokens", [1, 130, 10_000])
def test_equals_one_by_one(family: str, batch_tokens: int) -> None:
    loaded = shared(family, torch.float64)
    with Bridge(loaded, None):
        out = generate(loaded, prompts(), 8, stop_ids=set(), batch_tokens=batch_tokens)
    assert [g.ids for g in out] == expected_of(family)
    assert not any(g.stopped for g in out)
    assert all(g.prefill_s > 0 for g in out)


@pytest.mark.gpu
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_equals_one_by_one_on_a_gpu(family: str) -> None:
    loaded = load(family)
    expected = expected_of(family)
    loaded = wrap_model(loaded.model, None, name=family, device="cuda", dtype=torch.float64)
    order = sorted(range(len(LENGTHS)), key=LENGTHS.__getitem__)
    with Bridge(loaded, None, dense_kernel="reference"):
        out = generate(loaded, prompts(), 8, stop_ids=set(), batch_tokens=10_000)
        given = [prompts()[place] for place in order]
        together = generate(loaded, given, 8, stop_ids=set(), batch_tokens=10_000, prefill_tokens=10_000)
    assert [g.ids for g in out] == expected
    assert [g.ids for g in together] == [expected[place] for place in order], "two of one length, prefilled together"
    assert all(0 < g.prefill_s < 60 for g in out + together)


def test_without_a_bridge_too() -> None:
    generations = generate(shared("gemma3", torch.float64), prompts(), 8, stop_ids=set(), batch_tokens=10_000)
    assert [g.ids for g in generations] == expected_of("gemma3")


def test_max_new_per_sample() -> None:
    loaded, limits = shared("llama", torch.float64), [1, 9, 4, 2, 6]
    with Bridge(loaded, None):
        full = generate(loaded, prompts(), 9, stop_ids=set(), batch_tokens=10_000)
        out = generate(loaded, prompts(), limits, stop_ids=set(), batch_tokens=10_000)
    assert [g.ids for g in out] == [g.ids[:n] for g, n in zip(full, limits, strict=True)]


def test_stop_ids() -> None:
    loaded = shared("llama", torch.float64)
    with Bridge(loaded, None):
        free = generate(loaded, prompts(), 12, stop_ids=set(), batch_tokens=10_000)
        stop = {free[0].ids[3], free[3].ids[0]}
        out = generate(loaded, prompts(), 12, stop_ids=stop, batch_tokens=10_000)
    expected = [one_by_one(loaded, prompt, 12, stop) for prompt in prompts()]
    assert [g.ids for g in out] == expected
    assert out[3] == Generation([], out[3].prefill_s, stopped=True)
    assert [g.stopped for g in out] == [len(g.ids) < 12 for g in out]


def test_ends_when_all_have_stopped() -> None:
    loaded = load("llama")
    with Bridge(loaded, None):
        first = generate(loaded, prompts(), 1, stop_ids=set(), batch_tokens=10_000)
        steps: list[int] = []
        loaded.model.register_forward_hook(lambda *_: steps.append(1))
        generate(loaded, prompts(), 40, stop_ids={g.ids[0] for g in first}, batch_tokens=10_000)
    assert len(steps) == len(LENGTHS)  # the prefills alone


def test_sparse_prefill_does_not_depend_on_the_batch() -> None:
    loaded = shared("llama", torch.float64)
    with Bridge(loaded, Fixed(keep="ends")) as bridge:
        alone = generate(loaded, prompts(), 8, stop_ids=set(), batch_tokens=1)
        together = generate(loaded, prompts(), 8, stop_ids=set(), batch_tokens=10_000)
    assert [g.ids for g in alone] == [g.ids for g in together]
    assert len(bridge.prefill_densities()) == 2 * sum(n > 1 for n in LENGTHS)


@pytest.mark.parametrize(("prefill_tokens", "passes"), [(1, 6), (66, 4), (10_000, 3)])
def test_neighbours_of_one_length_are_prefilled_together(prefill_tokens: int, passes: int) -> None:
    """As many as the tokens allow, and each as it is alone: tokens, densities, and what may not come first."""
    loaded, given = shared("llama", torch.float64), [tokens(33, seed=i).tolist() for i in range(4)]
    given += [tokens(50, seed=9).tolist(), tokens(33, seed=7).tolist()]
    sizes: list[int] = []
    with Bridge(loaded, Fixed(keep="ends")) as bridge:
        alone = [generate(loaded, [prompt], 8, stop_ids=set(), batch_tokens=1)[0] for prompt in given]
        expected = bridge.prefill_densities(), bridge.prefill_densities(tokens=True)
        bridge.reset()
        hook = loaded.model.register_forward_hook(lambda *_: sizes.append(1))
        together = generate(loaded, given, 8, stop_ids=set(), batch_tokens=10_000, prefill_tokens=prefill_tokens)
        hook.remove()
        assert (bridge.prefill_densities(), bridge.prefill_densities(tokens=True)) == expected
        stops = [frozenset({g.ids[0]}) if i in (1, 5) else frozenset() for i, g in enumerate(alone)]
        own = generate(loaded, given, 2, stop_ids=set(), batch_tokens=10_000, own_stops=stops, prefill_tokens=prefill_tokens)
    assert [g.ids for g in together] == [g.ids for g in alone]
    assert len(sizes) == passes + 7, "prefills, and steps of all rows"
    assert [g.ids[0] == one.ids[0] for g, one in zip(own, alone, strict=True)] == [i not in (1, 5) for i in range(6)]


def test_on_batch_is_called_in_order() -> None:
    loaded, seen = shared("llama"), []
    with Bridge(loaded, None):
        out = generate(loaded, prompts(), 3, stop_ids=set(), batch_tokens=80, on_batch=lambda i, g: seen.append((i, g)))
    assert [g for _, batch in seen for g in batch] == out
    assert [i for i, _ in seen] == [sum(len(batch) for _, batch in seen[:n]) for n in range(len(seen))]
    assert 1 < len(seen) < len(out)


def test_a_prompt_with_nan_logits_says_so_and_its_neighbours_do_not() -> None:
    loaded = load("llama")
    embedding = loaded.model.get_input_embeddings().weight
    used = {token for prompt in prompts() for token in prompt}
    bad = next(t for t in range(embedding.shape[0] - 1, -1, -1) if t not in used)
    texts = [list(p) for p in prompts() if len(p) > 2][:3]
    texts[1][1] = bad
    original = embedding[bad].clone()
    try:
        with torch.no_grad():
            embedding[bad] = float("nan")
        with Bridge(loaded, None):
            # the head may be tied to the embedding: only what the prompt itself feeds in counts here
            finite = [g.finite for g in generate(loaded, texts, 3, stop_ids=set(), batch_tokens=10_000)]
    finally:
        with torch.no_grad():
            embedding[bad] = original
    assert finite == [True, False, True]


def test_batches() -> None:
    assert [list(b) for b in batches([5, 5, 5, 20, 1], 15)] == [[0, 1, 2], [3], [4]]
    assert batches([], 8) == []
    assert [list(b) for b in batches([5, 5, 5, 5, 5], 1000, 2)] == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"max_new": 0}, "at least 1"),
        ({"prompts": [[]]}, "at least 1"),
        ({"max_new": [1, 2]}, "2 values for 1 prompts"),
        ({"max_new": 480}, "context of 512 tokens"),
        ({"batch_tokens": 0}, "batch_tokens"),
    ],
)
def test_refuses(change: dict[str, Any], match: str) -> None:
    arguments = {"prompts": [list(range(3, 40))], "max_new": 4, "stop_ids": set(), "batch_tokens": 100, **change}
    with pytest.raises(UserError, match=match):
        generate(shared("llama"), **arguments)


@pytest.mark.parametrize("batch_tokens", [1, 10_000])
def test_a_sequence_that_has_ended_needs_no_more_steps(batch_tokens: int) -> None:
    """Asked every CHECK_EVERY steps; what came until then is handed back, and the others go on."""
    loaded = shared("llama", torch.float64)
    with Bridge(loaded, None):
        full = [g.ids for g in generate(loaded, prompts(), 24, stop_ids=set(), batch_tokens=10_000)]
        asked: list[list[int]] = []

        def ended(ids: list[int]) -> bool:
            asked.append(ids)
            return len(ids) > CHECK_EVERY

        out = generate(loaded, prompts(), 24, stop_ids=set(), batch_tokens=batch_tokens, ended=ended)
        assert [g.ids for g in out] == [ids[: 2 * CHECK_EVERY] for ids in full]
        assert {len(ids) for ids in asked} == {CHECK_EVERY, 2 * CHECK_EVERY}
        first = full[0]
        first_ended = generate(
            loaded, prompts(), 24, stop_ids=set(), batch_tokens=10_000, ended=lambda ids: ids == first[: len(ids)]
        )
    assert [g.ids for g in first_ended] == full, "one of five has ended: the batch goes on"


def test_stops_of_single_prompts_end_their_answers_and_never_begin_them() -> None:
    loaded = shared("llama", torch.float64)
    with Bridge(loaded, None):
        free = [g.ids for g in generate(loaded, prompts(), 12, stop_ids=set(), batch_tokens=10_000)]
        own = [frozenset(), frozenset({free[1][4]}), frozenset({free[2][0]}), frozenset(), frozenset()]
        out = generate(loaded, prompts(), 12, stop_ids=set(), batch_tokens=10_000, own_stops=own)
        end = free[1].index(free[1][4])
        assert end > 0 and out[1].ids == free[1][:end] and out[1].stopped
        assert [out[i].ids for i in (0, 3, 4)] == [free[i] for i in (0, 3, 4)], "the others know nothing of it"
        expected = loaded.model.generate(
            torch.tensor([prompts()[2]]),
            max_new_tokens=12,
            min_new_tokens=1,
            do_sample=False,
            eos_token_id=free[2][0],
            pad_token_id=0,
        )[0, 1:].tolist()
        assert out[2].ids and out[2].ids[0] != free[2][0]
        assert out[2].ids == [token for token in expected if token != free[2][0]]
        both = generate(loaded, prompts()[1:3], 12, stop_ids={free[2][0]}, batch_tokens=1, own_stops=[own[1], own[2]])
        assert all(g.ids for g in both), "nor does a stop of the model begin such an answer"
        with pytest.raises(UserError, match="own_stops has 1 sets for 5 prompts"):
            generate(loaded, prompts(), 12, stop_ids=set(), batch_tokens=1, own_stops=[frozenset()])
