"""Prompts prefilled in two pieces: what the model computes is transformers' own attention under a mask written by hand."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from attention_kernels.block_index import BlockIndex

import methods
from harness.core.errors import UserError
from harness.models import generate as generate_module
from harness.models.batch_cache import BatchCache
from harness.models.bridge import Bridge
from harness.models.generate import Split, generate
from harness.models.loading import LoadedModel
from methods import decode
from methods.parts.base import LayerInputs
from tests.harness.measure.test_self_check import built
from tests.harness.models.test_generate import one_by_one
from tests.harness.tiny import FAMILIES, Fixed, load, tokens

pytestmark = pytest.mark.filterwarnings("ignore")

BLOCK, NEW = 16, 8
LENGTHS = (75, 34, 50, 9)
CONTEXTS = (61, 33, 21, 1)
"""One off the block, one whose question is a single token, one, and one whose context is a single token."""


def prompts() -> list[list[int]]:
    return [tokens(n, seed=i).tolist() for i, n in enumerate(LENGTHS)]


class ByLength(Fixed):
    """Keeps everything of a prompt of 75 tokens, and the ends of shorter ones: where it sees the question, it selects more."""

    def select(self, x: LayerInputs) -> BlockIndex | None:
        self.keep = "all" if x.k.shape[2] == 75 else "ends"
        return super().select(x)


def masked(loaded: LoadedModel, prompt: list[int], context: int, steps: int = NEW) -> list[int]:
    """Greedy tokens by eager attention without a cache: rows of the context see the first block and their own, as `Fixed`
    keeps them, all later rows everything before them."""
    ids = list(prompt)
    loaded.model.set_attn_implementation("eager")
    try:
        for _ in range(steps):
            row, column = torch.arange(len(ids))[:, None], torch.arange(len(ids))[None]
            attended = (row >= context) | (column < BLOCK) | (column // BLOCK == row // BLOCK)
            mask = torch.where(attended & (column <= row), 0.0, float("-inf"))[None, None].to(loaded.dtype)
            with torch.no_grad():
                logits = loaded.model(input_ids=torch.tensor([ids]), attention_mask=mask, use_cache=False).logits
            ids.append(int(logits[0, -1].argmax()))
    finally:
        loaded.model.set_attn_implementation("sdpa")
    return ids[len(prompt) :]


@pytest.mark.parametrize("reread", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_dense_attention_is_the_same_in_two_pieces(family: str, reread: bool) -> None:
    loaded = load(family, dtype=torch.float64)
    expected = [one_by_one(loaded, prompt, NEW, set()) for prompt in prompts()]
    for bridge in (Bridge(loaded, None), nullcontext()):
        with bridge as attached:
            full = attached.in_full if attached is not None else nullcontext
            split = Split(CONTEXTS, full, reread)
            out = generate(loaded, prompts(), NEW, stop_ids=set(), batch_tokens=10_000, split=split)
        assert [g.ids for g in out] == expected and all(g.prefill_s > 0 for g in out)


@pytest.mark.parametrize("batch_tokens", [1, 10_000])
def test_the_context_is_the_methods_and_the_question_sees_everything(batch_tokens: int) -> None:
    loaded, method = load("llama", dtype=torch.float64), Fixed(block_size=BLOCK)
    expected = [masked(loaded, p, c) for p, c in zip(prompts(), CONTEXTS, strict=True)]
    whole = [masked(loaded, p, len(p)) for p in prompts()]
    with Bridge(loaded, method) as bridge:
        split = Split(CONTEXTS, bridge.in_full)
        out = generate(loaded, prompts(), NEW, stop_ids=set(), batch_tokens=batch_tokens, split=split)
        seen = generate(loaded, prompts(), NEW, stop_ids=set(), batch_tokens=batch_tokens)
    assert [g.ids for g in out] == expected
    assert [g.ids for g in seen] == whole and whole[0] != expected[0], "the mode makes a difference here"
    assert method.seen[: 2 * 3] == [(layer, n, n) for n in CONTEXTS[:3] for layer in (0, 1)], "of the question it sees nothing"
    assert not bridge.full


def test_a_question_read_again_differs_in_what_the_selection_saw() -> None:
    loaded = load("llama", dtype=torch.float64)
    prompt, context = prompts()[:1], CONTEXTS[:1]
    generations = {}
    for reread in (False, True):
        with Bridge(loaded, ByLength(block_size=BLOCK)) as bridge:
            split = Split(context, bridge.in_full, reread)
            (generations[reread],) = generate(loaded, prompt, NEW, stop_ids=set(), batch_tokens=1, split=split)
            assert bridge.prefill_densities() == [pytest.approx(1.0 if reread else 7 / 10)]
    assert generations[False].ids == masked(loaded, prompt[0], context[0])
    assert generations[True].ids == one_by_one(loaded, prompt[0], NEW, set())
    with Bridge(loaded, Fixed(block_size=BLOCK)) as bridge:
        (out,) = generate(loaded, prompt, NEW, stop_ids=set(), batch_tokens=1, split=Split(context, bridge.in_full, True))
    assert out.ids == masked(loaded, prompt[0], context[0]), "the keys of its first reading are gone"


@pytest.mark.parametrize("name", [n for n in methods.names() if methods.get(n).family != "none"])
def test_every_methods_context_is_that_of_a_prefill_without_question(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its keys and values, bit by bit, whatever the method keeps between layers and prompts; the model's own attention reads
    the question."""
    caches: list[BatchCache] = []
    monkeypatch.setattr(generate_module, "BatchCache", lambda *a, **kw: caches.append(BatchCache(*a, **kw)) or caches[-1])
    loaded, method = load("llama"), built(name, sparsity=0.7)
    given, contexts = [tokens(n, seed=n).tolist() for n in (299, 231)], (280, 213)
    alone = []
    with Bridge(loaded, method), torch.inference_mode():
        for prompt, context in zip(given, contexts, strict=True):
            alone.append(loaded.model(input_ids=torch.tensor([prompt[:context]]), use_cache=True).past_key_values)
    with Bridge(loaded, method) as bridge:
        generations = generate(loaded, given, 1, stop_ids=set(), batch_tokens=10_000, split=Split(contexts, bridge.in_full))
        assert max(bridge.prefill_densities()) < 1, "it left something out, or nothing was compared"
    (cache,) = caches
    for row, (prompt, context, alone_cache) in enumerate(zip(given, contexts, alone, strict=True)):
        for layer, other in zip(cache.layers, alone_cache.layers, strict=True):
            start = len(given[0]) - len(prompt)
            assert torch.equal(layer.keys[row, :, start : start + context], other.keys[0])  # type: ignore[index]
            assert torch.equal(layer.values[row, :, start : start + context], other.values[0])  # type: ignore[index]
        with torch.inference_mode():
            logits = loaded.model(input_ids=torch.tensor([prompt[context:]]), past_key_values=alone_cache).logits
        assert generations[row].ids == [int(logits[0, -1].argmax())]


def test_densities_are_of_the_context_alone() -> None:
    loaded = load("llama")
    with Bridge(loaded, Fixed(block_size=BLOCK)) as bridge, torch.inference_mode():
        for prompt, context in zip(prompts()[:3], CONTEXTS, strict=False):
            loaded.model(input_ids=torch.tensor([prompt[:context]]), use_cache=False)
        alone = bridge.prefill_densities(), bridge.prefill_densities(tokens=True)
        bridge.reset()
        split = Split(CONTEXTS[:3], bridge.in_full)
        generate(loaded, prompts()[:3], 2, stop_ids=set(), batch_tokens=1, split=split)
        assert (bridge.prefill_densities(), bridge.prefill_densities(tokens=True)) == alone
        assert {stats["kernel"] for stats in bridge.stats()} == {"sdpa"} and bridge.decode_kernels == {"sdpa"}


@pytest.mark.parametrize("name", ["quest", "streaming", "oracle"])
def test_sparse_decoding_begins_after_the_question(name: str) -> None:
    loaded = load("llama", dtype=torch.float64)
    steps, answers = {}, {}
    for budget in (16, 512):
        method = decode.build(name, block_size=16, budget=budget, **({"dense_layers": 0} if name == "quest" else {}))
        with Bridge(loaded, None, decoding=method) as bridge:
            split = Split(CONTEXTS, bridge.in_full)
            out = generate(loaded, prompts(), NEW, stop_ids=set(), batch_tokens=10_000, split=split)
            assert bridge.decoder is not None
            steps[budget] = bridge.decoder.take_densities()
        answers[budget] = [g.ids for g in out]
        with Bridge(loaded, None, decoding=method):
            whole = generate(loaded, prompts(), NEW, stop_ids=set(), batch_tokens=10_000)
        assert answers[budget] == [g.ids for g in whole], "a dense prefill is one in two pieces"
    assert answers[512] == [one_by_one(loaded, prompt, NEW, set()) for prompt in prompts()]
    assert [ids[0] for ids in answers[16]] == [ids[0] for ids in answers[512]], (
        "the question, of one token too, is read in full"
    )
    assert len(steps[16]) == NEW - 1 and len(steps[16][0]) == len(LENGTHS), "and is no step of decoding"


def test_in_full_is_over_when_it_fails() -> None:
    bridge = Bridge(load("llama"), Fixed())
    with pytest.raises(RuntimeError), bridge.in_full():
        assert bridge.full
        raise RuntimeError
    assert not bridge.full


def test_a_mask_on_a_question_is_refused() -> None:
    loaded = load("llama")
    with Bridge(loaded, None) as bridge, torch.inference_mode():
        cache = loaded.model(input_ids=tokens(1, 5), use_cache=True).past_key_values
        mask = torch.tensor([[0, 1, 1, 1, 1, 1]])
        with bridge.in_full(), pytest.raises(UserError, match="padding before a question of a single token"):
            loaded.model(input_ids=tokens(1, 1), past_key_values=cache, attention_mask=mask)


@pytest.mark.parametrize(
    ("contexts", "says"),
    [
        ((1,), "split has 1 contexts for 4 prompts"),
        ((0, 1, 1, 1), "prompt 0: a context of 0 of 75 tokens"),
        ((61, 34, 21, 1), "prompt 1: a context of 34 of 34 tokens; both parts need at least 1"),
    ],
)
def test_refuses(contexts: tuple[int, ...], says: str) -> None:
    with pytest.raises(UserError, match=says):
        generate(load("llama"), prompts(), 4, stop_ids=set(), batch_tokens=1, split=Split(contexts, nullcontext))
