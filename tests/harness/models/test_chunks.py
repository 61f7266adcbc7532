"""Prompts in chunks: the tokens, the densities and the kernels of the same prompts in one piece."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
import torch
from attention_kernels.dense import dense_attention
from torch import Tensor

from harness.models.bridge import Bridge
from harness.models.chunks import Chunks, prefill
from harness.models.generate import Generation, Split, generate
from methods import decode
from methods.parts.base import LayerInputs, Method
from tests.harness.models import test_rope_lengths
from tests.harness.models.test_generate import expected_of, prompts
from tests.harness.tiny import Fixed, shared, tokens
from tests.methods.support import ready

pytestmark = pytest.mark.filterwarnings("ignore")

BLOCK = 16
TOKENS = 145
"""Of a prompt: chunks of 48 or 144 tokens leave a last one of a single token."""


@lru_cache
def prompt() -> list[int]:
    return tokens(TOKENS, seed=3).tolist()


def generated(
    bridge: Bridge, given: list[list[int]], chunk: int | None, new: int = 8, batch_tokens: int = 10_000, **options: Any
) -> list[Generation]:
    chunks = None if chunk is None else Chunks(chunk, bridge.chunked)
    return generate(bridge.loaded, given, new, stop_ids=set(), batch_tokens=batch_tokens, chunks=chunks, **options)


@pytest.mark.parametrize(("family", "chunk"), [("llama_group3", 16), ("qwen3", 49), ("mistral_window", 16), ("gemma3", 16)])
def test_dense_attention_is_the_same_in_chunks(family: str, chunk: int) -> None:
    """Prompts of 33, 7, 1 and 50 tokens: a last chunk of one token, and chunks that are longer than any; in GQA groups, and
    past windows of 24 tokens. Two decode together where the batch holds no more."""
    with Bridge(shared(family, torch.float64), None) as bridge:
        out = generated(bridge, prompts(), chunk, batch_tokens=130)
        one_by_one = generated(bridge, prompts()[1:2], 1)
    assert [g.ids for g in out] == expected_of(family) and not bridge.in_prompt
    assert one_by_one[0].ids == expected_of(family)[1]


@pytest.mark.parametrize("kind", ["recomputing", "dynamic", "by_layer"])
def test_rope_that_depends_on_the_length_takes_the_whole_prompts(kind: str) -> None:
    with Bridge(test_rope_lengths.loaded_of(kind), None) as bridge:
        split = Split((49, 9, 20, 1, 12), bridge.in_full) if kind == "dynamic" else None
        out = generated(bridge, test_rope_lengths.prompts(), 10, new=test_rope_lengths.STEPS, split=split)
    assert [g.ids for g in out] == test_rope_lengths.expected_of(kind)


@pytest.mark.parametrize("chunk", [48, 64])
@pytest.mark.parametrize(
    ("name", "knobs"),
    [
        ("block_topk", {"sparsity": 0.6, "last": 2}),
        ("seer", {"selection": "threshold", "threshold": 0.05, "last": 2}),
        ("blasst", {"factor": 60.0}),
        ("streaming_llm", {"sparsity": 0.6}),
    ],
)
def test_a_method_keeps_the_same_in_chunks(name: str, knobs: dict[str, Any], chunk: int) -> None:
    loaded = shared("llama")  # gates are float32
    given = [prompt(), prompt()[:47]]
    ran = []
    for tokens_of_chunk in (None, chunk):
        with Bridge(loaded, ready(name, block_size=BLOCK, **knobs)) as bridge:
            out = generated(bridge, given, tokens_of_chunk)
            densities = bridge.prefill_densities(), bridge.prefill_densities(tokens=True)
            ran.append(([g.ids for g in out], densities, {stats["kernel"] for stats in bridge.stats()}))
    (ids, (blocks, pairs), kernels), (chunked_ids, (chunked_blocks, chunked_pairs), chunked_kernels) = ran
    assert chunked_ids == ids and chunked_kernels == kernels and blocks[0] < 1
    assert chunked_blocks == pytest.approx(blocks, abs=1e-6) and chunked_pairs == pytest.approx(pairs, abs=1e-6)


class Half(Fixed):
    """Keeps the ends from the second chunk on, and asks for dense attention before."""

    def select(self, x: LayerInputs) -> Any:
        self.keep = "none" if x.q.shape[2] == x.k.shape[2] else "ends"
        return super().select(x)


def test_the_density_is_of_all_chunks() -> None:
    with Bridge(shared("llama"), Half(block_size=BLOCK)) as bridge:
        generated(bridge, [prompt(), prompt()[:20]], 64)
    rows = [1, 2, 3, 4, 2, 2, 2, 2, 2, 2]
    assert bridge.prefill_densities() == pytest.approx([sum(rows) / 55, 1.0])
    assert [stats["calls"] for stats in bridge.stats()] == [4, 4]


@pytest.mark.parametrize("reread", [False, True])
def test_a_question_is_read_in_full_after_a_context_in_chunks(reread: bool) -> None:
    loaded, ran = shared("llama", torch.float64), []
    for chunk in (None, 48):
        method = ready("block_topk", block_size=BLOCK, sparsity=0.6)
        with Bridge(loaded, method) as bridge:
            split = Split((120, 60), bridge.in_full, reread)
            out = generated(bridge, [prompt(), prompt()[:61]], chunk, split=split)
            ran.append(([g.ids for g in out], bridge.prefill_densities()))
    assert ran[0][0] == ran[1][0] and ran[0][1] == pytest.approx(ran[1][1], abs=1e-6)


def test_sparse_decoding_follows_a_prompt_in_chunks() -> None:
    loaded, ran = shared("llama_group3", torch.float64), []
    for chunk in (None, 48):
        decoding = decode.build("quest", block_size=16, budget=32, dense_layers=0)
        method = ready("block_topk", block_size=BLOCK, sparsity=0.6)
        with Bridge(loaded, method, decoding=decoding) as bridge:
            out = generated(bridge, [prompt(), prompt()[:97], prompt()[:30]], chunk)
            assert bridge.decoder is not None
            steps = bridge.decoder.take_densities()
            ran.append(([g.ids for g in out], steps, bridge.prefill_densities()))
    assert ran[0][:2] == ran[1][:2] and ran[0][2] == pytest.approx(ran[1][2], abs=1e-6)
    assert len(ran[0][1]) == 7, "a last chunk of one token is no step of decoding"
    assert min(min(step) for step in ran[0][1]) < 1


class Counting(Method):
    """Has vectors of its blocks made, and counts the keys that they were made of."""

    name, paper, knob, family = "counting", "none: a method for tests", "none", "static"

    def __init__(self) -> None:
        super().__init__(block_size=BLOCK)
        self.pooled: dict[int, list[tuple[int, int]]] = {}

    def select(self, x: LayerInputs) -> None:
        def pool(keys: Tensor, first: int) -> Tensor:
            self.pooled.setdefault(x.layer, []).append((first, keys.shape[2]))
            blocks = keys.split(BLOCK, 2)
            return torch.stack([block.mean(2) for block in blocks], 2)

        whole = torch.stack([block.mean(2) for block in x.k.split(BLOCK, 2)], 2)
        for _ in range(2):  # asked again for the same keys it has all blocks that have ended
            torch.testing.assert_close(x.block_vectors(BLOCK, pool, "means"), whole)


def test_no_block_of_keys_is_pooled_twice() -> None:
    loaded, method = shared("llama"), Counting()
    with torch.inference_mode(), Bridge(loaded, method) as bridge:
        prefill(loaded, torch.tensor([prompt()]), Chunks(64, bridge.chunked))
        of_chunks = [(0, 64), (64, 64), (128, 17), (144, 1)]
        assert method.pooled == {layer: of_chunks for layer in range(2)}, "but for the last one, which has not ended"
        method.pooled.clear()
        prefill(loaded, torch.tensor([prompt()]), None)
        assert method.pooled == {layer: [(0, TOKENS)] * 2 for layer in range(2)}, "whole, nothing is kept"


def test_a_chunk_that_fails_leaves_nothing_behind() -> None:
    with Bridge(shared("llama"), None) as bridge:
        with pytest.raises(RuntimeError), bridge.chunked(9):
            assert bridge.in_prompt and bridge.chunked_prompt(0) is not None
            raise RuntimeError
        assert not bridge.in_prompt and bridge.chunked_prompt(0) is None


def test_the_chunks_of_a_layer_add_up_to_its_attention() -> None:
    """Whatever the bridge does, the last query of a chunk sees what plain PyTorch shows it."""
    seen: list[tuple[Tensor, Tensor, Tensor]] = []
    loaded = shared("llama_group3", torch.float64)
    with torch.inference_mode():
        with Bridge(loaded, None, observer=lambda _, q, k, v, __: seen.append((q, k, v))) as bridge:
            prefill(loaded, torch.tensor([prompt()]), Chunks(96, bridge.chunked))
        (q0, _, _), (q1, k, v) = seen[0], seen[2]
        q = torch.cat((q0, q1), 2)
        mask = torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril()
        plain = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        parts = [dense_attention(q0, k[:, :, :96], v[:, :, :96]), dense_attention(q1, k, v)]
    assert k.shape[2] == TOKENS and torch.allclose(torch.cat(parts, 2), plain)
