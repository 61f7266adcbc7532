"""Sparse decoding in real models: exact where nothing is dropped, independent of the batch, its state never stale."""

from __future__ import annotations

import copy
from functools import lru_cache
from typing import Any

import pytest
import torch
from attention_kernels.block_index import BlockIndex
from torch import Tensor
from transformers import DynamicCache

from harness.core.errors import UserError
from harness.models.bridge import Bridge
from harness.models.decoder import mean_density
from harness.models.generate import generate
from harness.models.loading import wrap_model
from methods import decode
from methods.decode.parts.base import DecodeMethod, StepInputs
from tests.harness.tiny import FAMILIES, GLOBAL, Fixed, load, shared, tokens

pytestmark = pytest.mark.filterwarnings("ignore")

LENGTHS = (133, 37, 1, 150, 64)
KNOBS: dict[str, dict[str, Any]] = {
    "quest": {"budget": 48, "dense_layers": 0},
    "oracle": {"budget": 32},
    "streaming": {"budget": 48},
    "random": {"sparsity": 0.6},
}


class Everything(DecodeMethod):
    """Keeps every block, through the sparse kernel; counts what it is asked."""

    name = "everything"
    paper = "none: a method for tests"
    family = "static"

    def __init__(self) -> None:
        super().__init__(sparsity=0.0)
        self.calls: list[tuple[str, int, int]] = []

    def start(self, x: StepInputs) -> str:
        self.calls.append(("start", x.layer, x.k.shape[2]))
        return "state"

    def extend(self, state: Any, x: StepInputs) -> None:
        assert state == "state"
        self.calls.append(("extend", x.layer, x.k.shape[2]))

    def select(self, x: StepInputs, state: Any) -> BlockIndex:
        blocks = -(-x.k.shape[2] // self.block_size)
        return self.best(torch.zeros(*x.k.shape[:2], blocks, device=x.k.device), x)


def prompts(lengths: tuple[int, ...] = LENGTHS) -> list[list[int]]:
    return [tokens(n, seed=i).tolist() for i, n in enumerate(lengths)]


def walk(loaded: Any, ids: Tensor, prompt: int, cache: Any = None) -> Tensor:
    """Logits of ids [B,N]: the first `prompt` at once, the others a token at a time."""
    cache = DynamicCache(config=loaded.model.config) if cache is None else cache
    with torch.no_grad():
        parts = [loaded.model(input_ids=ids[:, :prompt], past_key_values=cache).logits]
        parts += [loaded.model(input_ids=ids[:, i : i + 1], past_key_values=cache).logits for i in range(prompt, ids.shape[1])]
    return torch.cat(parts, 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_keeping_every_block_is_dense_decoding(family: str) -> None:
    loaded, ids = shared(family, torch.float64), tokens(2, 66)
    with Bridge(loaded, None):
        expected = walk(loaded, ids, 40)
    for method in (Everything(), decode.build("quest", budget=96), decode.build("oracle", sparsity=0.0)):
        with Bridge(loaded, None, decoding=method) as bridge:
            torch.testing.assert_close(walk(loaded, ids, 40), expected, atol=1e-9, rtol=1e-9)
            assert bridge.decoder is not None
            assert bridge.decoder.take_densities() == [[1.0, 1.0]] * 26


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_in_a_padded_batch_too(family: str) -> None:
    loaded = shared(family, torch.float64)
    with Bridge(loaded, None):
        expected = [g.ids for g in generate(loaded, prompts(), 12, stop_ids=set(), batch_tokens=10_000)]
    with Bridge(loaded, None, decoding=Everything()) as bridge:
        out = generate(loaded, prompts(), 12, stop_ids=set(), batch_tokens=10_000)
    assert [g.ids for g in out] == expected
    assert "sparse reference" in bridge.decode_kernels


def decoded(batch_tokens: int, decoding: DecodeMethod | None) -> list[list[int]]:
    """12 tokens after each prompt, which is prefilled sparsely."""
    loaded = shared("llama", torch.float64)
    with Bridge(loaded, Fixed(keep="ends"), decoding=decoding):
        return [g.ids for g in generate(loaded, prompts(), 12, stop_ids=set(), batch_tokens=batch_tokens)]


@lru_cache
def densely_decoded() -> list[list[int]]:
    return decoded(10_000, None)


@pytest.mark.parametrize("name", KNOBS)
def test_a_prompt_does_not_depend_on_its_batch(name: str) -> None:
    alone, together = (decoded(n, decode.build(name, **KNOBS[name])) for n in (1, 10_000))
    assert alone == together
    dense = densely_decoded()
    assert [ids[0] for ids in alone] == [ids[0] for ids in dense], "the first token comes from the prefill"
    assert alone != dense, "sparse decoding that changes nothing tests nothing"


def test_states_are_made_once_and_extended() -> None:
    loaded, method = load("llama"), Everything()
    with Bridge(loaded, None, decoding=method):
        generate(loaded, prompts((40, 30)), 5, stop_ids=set(), batch_tokens=10_000)
        for layer in (0, 1):
            calls = [call[::2] for call in method.calls if call[1] == layer]
            assert calls == [("start", 41), ("extend", 42), ("extend", 43), ("extend", 44)]
        method.calls.clear()
        generate(loaded, prompts((40, 30)), 2, stop_ids=set(), batch_tokens=10_000)
        assert method.calls == [("start", 0, 41), ("start", 1, 41)], "the next batch starts over"


@pytest.mark.parametrize("name", KNOBS)
def test_caches_in_turns_a_chunk_in_between_and_a_cut_cache(name: str) -> None:
    """Whatever is done with caches, each step is that of a method that sees its cache for the first time."""
    loaded = shared("llama", torch.float64)
    one, two = tokens(1, 120, seed=1), tokens(1, 120, seed=2)

    def fresh(ids: Tensor, length: int) -> Tensor:
        """The last logits after a prompt of length - 1 and one step."""
        with Bridge(loaded, None, decoding=decode.build(name, **KNOBS[name])):
            return walk(loaded, ids[:, :length], length - 1)[:, -1]

    def close(logits: Tensor, expected: Tensor) -> None:
        torch.testing.assert_close(logits, expected, atol=1e-9, rtol=1e-9)

    def dense(cache: DynamicCache, ids: Tensor) -> None:
        loaded.model(input_ids=ids, past_key_values=cache)

    def sparse(cache: DynamicCache, ids: Tensor, at: int) -> Tensor:
        return loaded.model(input_ids=ids[:, at : at + 1], past_key_values=cache).logits[:, -1]

    with Bridge(loaded, None, decoding=decode.build(name, **KNOBS[name])), torch.no_grad():
        caches = [DynamicCache(config=loaded.model.config) for _ in range(2)]
        for cache, ids in zip(caches, (one, two), strict=True):
            dense(cache, ids[:, :100])
        in_turns = [(sparse(caches[0], one, n), sparse(caches[1], two, n)) for n in (100, 101)]
        caches[0].crop(-2)  # back to the prompt, and on with other tokens
        again = sparse(caches[0], two, 100)
        dense(caches[0], two[:, 101:103])
        unknown = copy.deepcopy(caches[0])
        close(sparse(caches[0], one, 103), sparse(unknown, one, 103))
    close(in_turns[0][0], fresh(one, 101))
    close(in_turns[0][1], fresh(two, 101))
    with Bridge(loaded, None, decoding=decode.build(name, **KNOBS[name])):
        close(in_turns[1][0], walk(loaded, one[:, :102], 100)[:, -1])
        close(in_turns[1][1], walk(loaded, two[:, :102], 100)[:, -1])
    close(again, fresh(torch.cat((one[:, :100], two[:, 100:101]), 1), 101))


def test_generate_of_transformers_runs_it() -> None:
    loaded = shared("llama", torch.float64)
    with Bridge(loaded, None, decoding=decode.build("quest", **KNOBS["quest"])) as bridge:
        (generation,) = generate(loaded, prompts((70,)), 10, stop_ids=set(), batch_tokens=1)
        bridge.reset()
        ids = torch.tensor(prompts((70,)))
        expected = loaded.model.generate(ids, max_new_tokens=10, do_sample=False, eos_token_id=None, pad_token_id=0)
        assert expected[0, 70:].tolist() == generation.ids
        assert bridge.decoder is not None
        assert len(bridge.decoder.take_densities()) == 9


@pytest.mark.parametrize("family", GLOBAL)
def test_densities_are_those_of_each_sequence(family: str) -> None:
    loaded = shared(family)
    with Bridge(loaded, None, decoding=decode.build("streaming", budget=48, dense_layers=1)) as bridge:
        generate(loaded, prompts((133, 37, 5)), 3, stop_ids=set(), batch_tokens=10_000)
        assert bridge.decoder is not None
        steps = bridge.decoder.take_densities()
    assert len(steps) == 2, "the first token is no step of decoding"
    for step, added in zip(steps, (1, 2), strict=True):
        blocks = [-(-(n + added) // 16) for n in (133, 37, 5)]
        assert step == pytest.approx([(1 + min(3, n) / n) / 2 for n in blocks])
    assert mean_density(steps, 1, 2) == pytest.approx(1.0) and mean_density(steps, 0, 0) is None


def test_a_mask_with_holes_is_refused() -> None:
    loaded, ids = load("llama"), tokens(1, 40)
    mask = torch.ones(1, 41, dtype=torch.long)
    mask[0, 20] = 0
    with Bridge(loaded, None, decoding=Everything()), torch.no_grad():
        cache = DynamicCache(config=loaded.model.config)
        loaded.model(input_ids=ids, past_key_values=cache)
        with pytest.raises(UserError, match="only padding on the left"):
            loaded.model(input_ids=ids[:, :1], past_key_values=cache, attention_mask=mask)


def test_unknown_kernels_and_blocks_that_a_kernel_cannot_run() -> None:
    with pytest.raises(ValueError, match="kernel=nonsense is not known"):
        Bridge(load("llama"), None, decoding=Everything(), decode_kernel="nonsense")


def test_the_hook_is_gone_after_the_block() -> None:
    loaded = load("llama")
    with Bridge(loaded, None, decoding=Everything()):
        assert loaded.model.get_decoder()._forward_pre_hooks
    assert not loaded.model.get_decoder()._forward_pre_hooks


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_the_triton_kernels_in_a_model(device: str) -> None:
    if device == "cpu" and torch.cuda.is_available():
        pytest.skip("the interpreter is for machines without a GPU")
    loaded = load("llama")
    loaded = wrap_model(loaded.model, None, name="llama", device=device, dtype=torch.float32)
    with Bridge(loaded, None):
        expected = [g.ids for g in generate(loaded, prompts((37, 20)), 3, stop_ids=set(), batch_tokens=10_000)]
    for batch_tokens in (1, 10_000):
        with Bridge(loaded, None, decoding=Everything(), decode_kernel="triton") as bridge:
            out = generate(loaded, prompts((37, 20)), 3, stop_ids=set(), batch_tokens=batch_tokens)
        assert [g.ids for g in out] == expected and bridge.decode_kernels == {"sparse triton"}
