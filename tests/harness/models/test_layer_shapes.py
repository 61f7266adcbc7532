"""Heads and windows are a layer's, measured: whatever asks for them gets those of the layer."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import methods
from harness.arms.gate_files import add_local_layers, for_all_layers
from harness.core.errors import UserError
from harness.measure import generate_batches
from harness.measure.latency.attention import time_attention
from harness.models.bridge import Bridge
from harness.models.generate import generate
from harness.models.layer_shapes import column_bytes
from harness.models.loading import LoadedModel, local_layers, model_shape, wrap_model
from harness.training.gates.recipe import Recipe
from methods import decode
from tests.harness.models import decoders
from tests.harness.tiny import Fixed, load, tokens
from tests.harness.training.distilling import distill_one

BLOCK, LENGTH = 16, 80


def loaded_kind(kind: str, **sizes: Any) -> LoadedModel:
    if kind not in decoders.KINDS:
        pytest.skip(f"this transformers has no {kind}")
    return wrap_model(decoders.build(kind, **sizes), None, name=kind)


@pytest.fixture(scope="module")
def gemma4() -> LoadedModel:
    """Layers of a window with 2 KV heads of 16 elements, and a last one that is global, with one KV head of 32."""
    kinds = ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"]
    sizes = {"attention_k_eq_v": True, "num_global_key_value_heads": 1, "num_kv_shared_layers": 0}
    return loaded_kind("gemma4_text", layer_types=kinds, **sizes)


def test_heads_differ_by_layer(gemma4: LoadedModel) -> None:
    sizes = [(shape.heads, shape.kv_heads, shape.head_dim, shape.window) for shape in gemma4.layer_shapes]
    assert sizes == [(4, 2, 16, decoders.WINDOW)] * 3 + [(4, 1, 32, None)]
    assert (gemma4.heads, gemma4.kv_heads, gemma4.head_dim) == (4, 1, 32)
    assert model_shape(gemma4) == {"layers": 4, "heads": 4, "kv_heads": 1, "head_dim": 32}
    assert column_bytes(gemma4.layer_shapes, 2) == 2 * 2 * (3 * 2 * 16 + 32)


def test_layers_that_share_keys_need_no_memory() -> None:
    loaded = loaded_kind("gemma3n_text")
    assert [shape.shares_keys for shape in loaded.layer_shapes] == [False, False, True, True]
    assert column_bytes(loaded.layer_shapes, 4) == 2 * 4 * 2 * 2 * 16


def test_the_heads_of_latent_attention_are_those_that_attention_gets() -> None:
    loaded = loaded_kind("deepseek_v3", qk_rope_head_dim=4, qk_nope_head_dim=12)
    assert (loaded.heads, loaded.kv_heads, loaded.head_dim) == (4, 4, 16)


def test_the_batch_of_a_gpu_is_of_what_the_layers_keep(gemma4: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (10**6, 10**6))
    on_gpu = replace(gemma4, device=torch.device("cuda"))
    expected = int(generate_batches.GPU_MEMORY_SHARE * 10**6 / column_bytes(gemma4.layer_shapes, 4))
    assert generate_batches.suitable_batch_tokens(on_gpu) == expected


def test_kernels_are_of_the_layers_head_size(gemma4: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def resolve(name: str, *, head_dim: int, **_: Any) -> str:
        asked.append(head_dim)
        return "sdpa" if head_dim == 32 else "reference"

    monkeypatch.setattr("harness.models.kernel_choice.resolve_dense", resolve)
    short = tokens(1, decoders.WINDOW)  # every layer is global
    with Bridge(gemma4, None) as bridge, torch.no_grad():
        gemma4.model(input_ids=short)
    assert [stats["kernel"] for stats in bridge.stats()] == ["reference"] * 3 + ["sdpa"] and set(asked) == {16, 32}
    decoding = decode.build("quest", block_size=16, budget=32)
    with Bridge(gemma4, Fixed(), decoding=decoding, decode_kernel="reference"):
        generate(gemma4, [short[0].tolist()], 3, stop_ids=set(), batch_tokens=10**4)
    assert time_attention(gemma4, Fixed(), tokens(1, LENGTH)[0].tolist(), repeats=1).layers == (3,)


def test_gates_are_of_the_layers_heads(gemma4: LoadedModel, tmp_path: Path) -> None:
    recipe = Recipe(steps=1, block_size=BLOCK, warmup=1)
    done = distill_one(gemma4, itertools.repeat(tokens(1, LENGTH)), recipe, out=tmp_path)
    state = load_file(str(done.path))
    assert {name.split(".")[1] for name in state} == {"3"}
    method = methods.build("seer", sparsity=0.0, block_size=BLOCK)
    method.load(for_all_layers(state, done.path, gemma4, LENGTH), **model_shape(gemma4))
    ids = tokens(1, LENGTH)
    with torch.no_grad():
        with Bridge(gemma4, None):
            dense = gemma4.model(input_ids=ids).logits
        with Bridge(gemma4, method):
            torch.testing.assert_close(gemma4.model(input_ids=ids).logits, dense, atol=1e-3, rtol=1e-3)
        with pytest.raises(UserError, match="take prompts of more than"):
            for_all_layers(state, done.path, gemma4, decoders.WINDOW)
        # a file that has weights for the other layers all the same
        method.load(add_local_layers(state, local_layers(gemma4)), **model_shape(gemma4))
        with Bridge(gemma4, method), pytest.raises(ValueError, match="layer 0 has 4 query heads of 16 elements, its gate"):
            gemma4.model(input_ids=ids[:, :20])


def test_weights_for_layers_that_differ_are_refused(gemma4: LoadedModel) -> None:
    every_layer_global = tuple(replace(shape, window=None) for shape in gemma4.layer_shapes)
    with pytest.raises(UserError, match="the layers of gemma4_text differ"):
        model_shape(replace(gemma4, layer_shapes=every_layer_global))


def test_a_model_that_does_not_run_is_refused_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load("llama")
    monkeypatch.setattr(loaded.model.model.layers[0].mlp, "forward", lambda _: 1 / 0)
    with pytest.raises(UserError, match=r"toy: LlamaForCausalLM does not run on 4 tokens \(ZeroDivisionError: "):
        wrap_model(loaded.model, None, name="toy")
