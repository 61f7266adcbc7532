"""The bridge computes what eager attention computes, refuses what it can't, and leaves nothing behind."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, StaticCache

import methods
from harness.core.errors import UserError
from harness.models.attention_interface import IMPLEMENTATION, attached
from harness.models.bridge import Bridge
from harness.models.generate import generate
from tests.harness.tiny import FAMILIES, GLOBAL, WINDOW, Fixed, build, load, shared, tokens

pytestmark = pytest.mark.filterwarnings("ignore")


def eager(loaded: Any, **inputs: Any) -> Any:
    """The model's output with transformers' own eager attention."""
    loaded.model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            return loaded.model(**inputs)
    finally:
        loaded.model.set_attn_implementation("sdpa")


def close(logits: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
class TestEqualsEager:
    def test_prefill(self, family: str) -> None:
        loaded, ids = shared(family), tokens(2, 53)
        expected = eager(loaded, input_ids=ids).logits
        with Bridge(loaded, None), torch.no_grad():
            close(loaded.model(input_ids=ids).logits, expected)

    def test_shorter_than_the_window(self, family: str) -> None:
        loaded, ids = shared(family), tokens(1, WINDOW - 1)
        expected = eager(loaded, input_ids=ids).logits
        with Bridge(loaded, Fixed(keep="all")), torch.no_grad():
            close(loaded.model(input_ids=ids).logits, expected)

    def test_decode_with_cache(self, family: str) -> None:
        loaded, ids = shared(family), tokens(1, 60)
        expected = eager(loaded, input_ids=ids).logits
        with Bridge(loaded, None), torch.no_grad():
            cache = DynamicCache(config=loaded.model.config)
            parts = [loaded.model(input_ids=ids[:, :40], past_key_values=cache).logits]
            parts += [loaded.model(input_ids=ids[:, i : i + 1], past_key_values=cache).logits for i in range(40, 60)]
        close(torch.cat(parts, 1), expected)

    def test_decode_from_a_single_token(self, family: str) -> None:
        loaded, ids = shared(family), tokens(1, 3)
        expected = eager(loaded, input_ids=ids).logits
        with Bridge(loaded, Fixed()), torch.no_grad():
            cache = DynamicCache(config=loaded.model.config)
            parts = [loaded.model(input_ids=ids[:, i : i + 1], past_key_values=cache).logits for i in range(3)]
        close(torch.cat(parts, 1), expected)

    @pytest.mark.parametrize("keep", ["all", "none"])
    def test_chunked_prefill(self, family: str, keep: str) -> None:
        loaded, ids = shared(family), tokens(1, 61)
        expected = eager(loaded, input_ids=ids).logits
        with Bridge(loaded, Fixed(keep=keep)) as bridge, torch.no_grad():
            cache = DynamicCache(config=loaded.model.config)
            parts = [loaded.model(input_ids=chunk, past_key_values=cache).logits for chunk in (ids[:, :37], ids[:, 37:])]
        close(torch.cat(parts, 1), expected)
        if family in GLOBAL:
            assert bridge.method is not None
            assert (1, 24, 61) in bridge.method.seen  # type: ignore[attr-defined]

    @pytest.mark.parametrize("keep", ["all", "none"])
    def test_method_that_keeps_everything(self, family: str, keep: str) -> None:
        loaded, ids = shared(family), tokens(2, 53)
        expected = eager(loaded, input_ids=ids).logits
        with Bridge(loaded, Fixed(keep=keep)), torch.no_grad():
            close(loaded.model(input_ids=ids).logits, expected)

    def test_left_padded_decode(self, family: str) -> None:
        """One decode step over a cache whose first columns are no tokens equals the shorter prompt by itself."""
        loaded, ids = shared(family), tokens(1, 31)
        expected = eager(loaded, input_ids=ids).logits[:, -1]
        with Bridge(loaded, None), torch.no_grad():
            short, padded = DynamicCache(), DynamicCache()
            loaded.model(input_ids=ids[:, :-1], past_key_values=short)
            for i, layer in enumerate(short.layers):
                pad = [torch.nn.functional.pad(x, (0, 0, 5, 0), value=3.0) for x in (layer.keys, layer.values)]
                padded.update(pad[0], pad[1], i)
            mask = torch.cat([torch.zeros(1, 5, dtype=torch.long), torch.ones(1, 31, dtype=torch.long)], 1)
            out = loaded.model(
                input_ids=ids[:, -1:], past_key_values=padded, attention_mask=mask, position_ids=torch.tensor([[30]])
            )
        close(out.logits[:, -1], expected)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", [n for n in methods.names() if methods.get(n).weights is None])
def test_sparsity_zero_equals_dense(family: str, name: str) -> None:
    loaded, ids = shared(family), tokens(2, 53)
    with torch.no_grad():
        with Bridge(loaded, None):
            expected = loaded.model(input_ids=ids).logits
        with Bridge(loaded, methods.build(name, sparsity=0.0, block_size=16)) as bridge:
            close(loaded.model(input_ids=ids).logits, expected)
    assert {s["density"] for s in bridge.stats()} <= {1.0, None}


@pytest.mark.parametrize("family", FAMILIES)
def test_dropping_blocks_changes_the_logits(family: str) -> None:
    loaded, ids = shared(family), tokens(1, 96)
    expected = eager(loaded, input_ids=ids).logits
    with Bridge(loaded, Fixed(keep="ends")), torch.no_grad():
        logits = loaded.model(input_ids=ids).logits
    close(logits[:, :32], expected[:, :32])  # two blocks: the first and the diagonal are all there is
    changed = not torch.allclose(logits[:, 32:], expected[:, 32:], atol=1e-3)
    assert changed == (family != "mistral_window")  # all its layers are of the window, which is never sparse


def test_block_sparse_equals_masked_dense() -> None:
    """A model of one layer with dropped blocks equals eager attention under the same mask, written out."""
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        initializer_range=0.3,
    )
    loaded = shared("llama")
    model = LlamaForCausalLM(config).eval()
    loaded = type(loaded)(**{**loaded.__dict__, "model": model, "layers": 1})
    ids = tokens(1, 70)
    position = torch.arange(70)
    causal = position[:, None] >= position[None]
    block = position // 16
    kept_keys = causal & ((block[None] == 0) | (block[:, None] == block[None]))
    bias = torch.zeros(70, 70).masked_fill(~kept_keys, torch.finfo(torch.float32).min)[None, None]
    expected = eager(loaded, input_ids=ids, attention_mask=bias).logits
    with Bridge(loaded, Fixed(keep="ends")), torch.no_grad():
        close(loaded.model(input_ids=ids).logits, expected)


class TestRefuses:
    def run(self, family: str = "llama", match: str = "", method: Any = None, **inputs: Any) -> None:
        loaded = shared(family)
        with Bridge(loaded, method), torch.no_grad(), pytest.raises(UserError, match=match):
            loaded.model(**{"input_ids": tokens(2, 40), **inputs})

    @pytest.mark.parametrize("family", FAMILIES)
    @pytest.mark.parametrize("column", [0, -1])
    def test_padding_in_the_prompt(self, family: str, column: int) -> None:
        mask = torch.ones(2, 40, dtype=torch.long)
        mask[1, column] = 0
        self.run(family, "padding", attention_mask=mask)

    def test_a_mask_without_padding_is_fine(self) -> None:
        loaded = load("llama")
        with Bridge(loaded, Fixed()), torch.no_grad():
            loaded.model(input_ids=tokens(2, 40), attention_mask=torch.ones(2, 40, dtype=torch.long))

    def test_four_dimensional_mask(self) -> None:
        self.run(match="mask of shape", attention_mask=torch.zeros(2, 1, 40, 40))

    def test_packed_sequences(self) -> None:
        positions = torch.cat([torch.arange(20), torch.arange(20)])[None].expand(2, -1)
        self.run(match="packed", position_ids=positions, use_cache=False)

    def test_output_attentions(self) -> None:
        self.run(match="output_attentions", output_attentions=True)

    def test_static_cache(self) -> None:
        self.run(match="StaticCache", past_key_values=StaticCache(build("llama").config, max_cache_len=64))

    def test_static_cache_at_decode(self) -> None:
        loaded = load("llama")
        cache = StaticCache(loaded.model.config, max_cache_len=64)
        with torch.no_grad():
            loaded.model(input_ids=tokens(1, 40), past_key_values=cache)
            with Bridge(loaded, None), pytest.raises(UserError, match="StaticCache"):
                loaded.model(input_ids=tokens(1, 1), past_key_values=cache)

    @pytest.mark.parametrize(
        ("name", "value"), [("softcap", 30.0), ("s_aux", torch.zeros(4)), ("cu_seq_lens_q", torch.tensor([0, 40]))]
    )
    def test_arguments_that_change_attention(self, name: str, value: Any) -> None:
        self.run(match=name, **{name: value})

    def test_dropout(self) -> None:
        loaded = load("llama")
        for layer in loaded.model.model.layers:
            layer.self_attn.attention_dropout = 0.1
        loaded.model.train()
        with Bridge(loaded, None), pytest.raises(UserError, match="dropout"):
            loaded.model(input_ids=tokens(1, 8))

    def test_layers_of_another_kind(self) -> None:
        loaded = load("llama")
        loaded.model.config.layer_types = ["chunked_attention", "full_attention"]
        with pytest.raises(UserError, match="chunked_attention"), Bridge(loaded, None):
            pass

    def test_unknown_kernels(self) -> None:
        loaded = load("llama")
        with pytest.raises(ValueError, match="nonsense"):
            Bridge(loaded, None, dense_kernel="nonsense")
        with pytest.raises(ValueError, match="nonsense"), Bridge(loaded, Fixed(), sparse_kernel="nonsense"):
            loaded.model(input_ids=tokens(1, 40))


class TestAttaching:
    def test_restores_on_exit(self) -> None:
        loaded = load("llama")
        ids = tokens(1, 40)
        before = loaded.model(input_ids=ids).logits
        with pytest.raises(ZeroDivisionError), Bridge(loaded, Fixed()):
            assert loaded.model.config._attn_implementation == IMPLEMENTATION
            raise ZeroDivisionError
        assert loaded.model.config._attn_implementation == "sdpa"
        assert torch.equal(loaded.model(input_ids=ids).logits, before)
        assert not attached

    def test_nested_is_an_error(self) -> None:
        loaded = load("llama")
        with Bridge(loaded, None):
            with pytest.raises(UserError, match="already"), Bridge(loaded, Fixed()):
                pass
            loaded.model(input_ids=tokens(1, 20))  # the outer one is still there

    def test_can_be_used_again(self) -> None:
        loaded = load("llama")
        bridge = Bridge(loaded, Fixed())
        for _ in range(2):
            with bridge:
                loaded.model(input_ids=tokens(1, 40))
        assert bridge.stats()[0]["calls"] == 2

    def test_two_models_at_once(self) -> None:
        one, two, ids = load("llama", seed=1), load("qwen3", seed=2), tokens(1, 64)
        expected = eager(two, input_ids=ids).logits
        with torch.no_grad(), Bridge(one, Fixed(keep="ends")) as first, Bridge(two, Fixed(keep="all")) as second:
            sparse = one.model(input_ids=ids).logits
            close(two.model(input_ids=ids).logits, expected)
        assert not torch.allclose(sparse, eager(one, input_ids=ids).logits, atol=1e-3)
        assert first.stats()[0]["density"] < 1  # type: ignore[operator]
        assert second.stats()[0]["density"] == 1

    def test_model_without_a_bridge_says_so(self) -> None:
        loaded = load("llama")
        with Bridge(loaded, None):
            pass
        loaded.model.set_attn_implementation(IMPLEMENTATION)
        with pytest.raises(UserError, match="no Bridge"):
            loaded.model(input_ids=tokens(1, 8))

    def test_nothing_keeps_the_model_alive(self) -> None:
        gc.collect()
        assert len(attached) == 0


class TestStats:
    def test_density_per_layer_and_prompt(self) -> None:
        loaded = load("gemma3")
        with Bridge(loaded, Fixed(keep="ends")) as bridge, torch.no_grad():
            for length in (64, 48):
                cache = loaded.model(input_ids=tokens(1, length), use_cache=True).past_key_values
                loaded.model(input_ids=tokens(1, 1), past_key_values=cache)
        window, full = bridge.stats()
        assert window["kernel"] == "sliding_window"
        assert window["density"] is None
        assert full["kernel"] == "sdpa"
        assert full["calls"] == 2
        # four block rows: 1 + 2 + 2 + 2 kept of 1 + 2 + 3 + 4; three: 1 + 2 + 2 of 6
        assert full["densities"] == pytest.approx([7 / 10, 5 / 6])
        assert bridge.prefill_densities() == pytest.approx([7 / 10, 5 / 6])
        bridge.reset()
        assert bridge.stats() == []

    def test_dense_names_its_kernel(self) -> None:
        loaded = load("llama")
        with Bridge(loaded, None) as bridge, torch.no_grad():
            loaded.model(input_ids=tokens(1, 20))
        assert [s["density"] for s in bridge.stats()] == [1.0, 1.0]
        assert {s["kernel"] for s in bridge.stats()} == {bridge.dense_kernel}
        assert bridge.dense_kernel != "auto"

    def test_names_the_kernel_of_decode(self) -> None:
        loaded = load("llama")
        with Bridge(loaded, None, dense_kernel="reference") as bridge:
            generate(loaded, [[5, 6, 7], [8, 9]], 3, stop_ids=set(), batch_tokens=100)
        assert bridge.decode_kernels == {"reference"}

    def test_times(self) -> None:
        loaded = load("llama")
        with Bridge(loaded, Fixed(), timer=True) as bridge, torch.no_grad():
            loaded.model(input_ids=tokens(1, 40))
        for stats in bridge.stats():
            assert stats["selection_ms"] is not None
            assert stats["selection_ms"] > 0
            assert stats["attention_ms"] is not None
            assert stats["attention_ms"] > 0


def test_a_method_that_reuses_between_layers_sees_every_prompt_anew() -> None:
    loaded, method = load("llama"), methods.build("kascade", sparsity=0.5, block_size=16)
    prompts = [tokens(1, 100, seed=seed) for seed in (1, 2)]
    with Bridge(loaded, method):
        together = [loaded.model(prompt, use_cache=False).logits for prompt in prompts]
    for prompt, logits in zip(prompts, together, strict=True):
        with Bridge(loaded, methods.build("kascade", sparsity=0.5, block_size=16)) as bridge:
            assert torch.equal(loaded.model(prompt, use_cache=False).logits, logits)
            assert bridge.prefill_densities()[0] == pytest.approx(0.5, abs=0.02)
