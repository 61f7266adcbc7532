"""What a mask function asks for is read right, or refused; the attention function honours it, or refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from attention_kernels.dense import dense_attention
from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM, masking_utils
from transformers.masking_utils import (
    and_masks,
    bidirectional_mask_function,
    causal_mask_function,
    chunked_causal_mask_function,
    or_masks,
    packed_sequence_mask_function,
    sliding_window_bidirectional_mask_function,
    sliding_window_causal_mask_function,
    sliding_window_overlay,
)

from harness.core.errors import UserError
from harness.models import masks
from harness.models.attention_interface import IMPLEMENTATION
from harness.models.bridge import SLIDING, Bridge
from harness.models.generate import generate
from harness.models.loading import LoadedModel, local_layers, local_window, wrap_model
from harness.models.masks import LayerMask, window_of
from harness.training.gates.capture import Capture
from tests.harness.models import decoders
from tests.harness.tiny import WINDOW, Fixed, build, load, shared, tokens

TOKENS = torch.arange(64)[None] // 10


def but_for_one_key(far: int, hidden: int) -> Callable[..., Any]:
    """Causal, but that queries from `far` on don't see the key at `hidden`."""
    return lambda b, h, q, k: (k <= q) & ((q < far) | (k != hidden))


class TestWindowOf:
    @pytest.mark.parametrize("window", [1, 2, 24, 1024, 5000])
    def test_windows(self, window: int) -> None:
        assert window_of(sliding_window_causal_mask_function(window), 30) == window
        assert window_of(lambda b, h, q, k: (q - k < window) & (q >= k), 9000) == window

    def test_causal(self) -> None:
        for function in (None, causal_mask_function, and_masks(causal_mask_function, causal_mask_function)):
            assert window_of(function, 5000) is None
        assert window_of(and_masks(sliding_window_overlay(64), sliding_window_causal_mask_function(32)), 5) == 32

    @pytest.mark.parametrize(
        "function",
        [
            bidirectional_mask_function,
            sliding_window_bidirectional_mask_function(24),
            chunked_causal_mask_function(24, torch.zeros(1, dtype=torch.int64)),
            packed_sequence_mask_function(TOKENS),
            or_masks(causal_mask_function, lambda b, h, q, k: TOKENS[b, q] == TOKENS[b, k]),
            and_masks(causal_mask_function, lambda b, h, q, k: TOKENS[b, k] > 0),
            lambda b, h, q, k: q // 24 == k // 24,
            lambda b, h, q, k: (k <= q) & (k % 2 == q % 2),
            lambda b, h, q, k: k < q,
            lambda b, h, q, k: k <= q + 1,
            lambda b, h, q, k: (k <= q) & ((k > q - 24) | (k < 4)),
            lambda b, h, q, k: (k <= q) & (b == 0),
            but_for_one_key(3000, 7),
            lambda b, h, q, k: bool(q > k),
            lambda b, h, q, k: q.nothing,
            torch.nn.Identity(),
        ],
    )
    def test_anything_else_is_refused(self, function: Any) -> None:
        with pytest.raises(UserError, match="a mask other than causal or a sliding window"):
            window_of(function, 30)

    def test_functions_of_the_same_code_and_constants_are_read_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        window_of(sliding_window_causal_mask_function(77), 30)
        monkeypatch.setattr(masks, "_probe", lambda *_: pytest.fail("read again"))
        assert window_of(sliding_window_causal_mask_function(77), 31) == 77


def test_a_model_that_reads_its_mask_is_told() -> None:
    mask = LayerMask(5)
    assert not hasattr(mask, "dtype")
    for read in (lambda: mask.shape, lambda: mask[:, :2], lambda: torch.zeros(2) + mask, lambda: torch.cat([mask, mask])):
        with pytest.raises(UserError, match="attention mask by itself"):
            read()


@pytest.fixture(scope="module")
def phimoe() -> LoadedModel:
    return wrap_model(decoders.build("phimoe"), None, name="phimoe")


class TestWindowOfTheMaskAlone:
    """PhiMoE's attention gets no sliding_window: eager attention has the window from the mask. Its logits, in one piece and in
    chunks, and the tokens of a batch are compared in test_decoders."""

    def test_its_layers_run_the_sliding_kernel_and_are_not_the_methods(self, phimoe: LoadedModel) -> None:
        seen: list[int] = []
        method = Fixed(keep="ends")
        with Bridge(phimoe, method, observer=lambda layer, *_: seen.append(layer)) as bridge, torch.no_grad():
            phimoe.model(input_ids=tokens(1, WINDOW + 1))
        assert {stats["kernel"] for stats in bridge.stats()} == {SLIDING} and not method.seen and not seen
        assert {shape.window for shape in phimoe.layer_shapes} == {WINDOW}

    def test_decoding_sees_the_window_alone(self, phimoe: LoadedModel) -> None:
        """Tokens far back change nothing in one layer; in several they do, by way of the layers below."""
        one = tokens(1, 3 * WINDOW)[0].tolist()
        with Bridge(phimoe, None) as bridge:
            generate(phimoe, [one, one[: WINDOW // 2]], 3, stop_ids=set(), batch_tokens=10**4)
        assert bridge.decode_kernels == {bridge.dense_kernel, "sdpa"}

    def test_gates_learn_nothing_from_its_layers(self, phimoe: LoadedModel) -> None:
        shown: list[int] = []
        expected = phimoe.model(input_ids=tokens(1, 60), logits_to_keep=1).logits
        with Capture(phimoe.model, lambda layer, *_: shown.append(layer)) as capture, torch.no_grad():
            capture.run(tokens(1, 60))
            logits = phimoe.model(input_ids=tokens(1, 60), use_cache=False, logits_to_keep=1).logits
        assert not shown
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def test_a_window_of_some_layers_that_only_the_mask_knows() -> None:
    model = build("gemma3")
    model.model.layers[0].self_attn.sliding_window = None  # the argument of kernels without a mask
    loaded = wrap_model(model, None, name="toy")
    assert local_layers(loaded) == {0} and local_window(loaded) == WINDOW


class TestRefuses:
    def test_a_window_that_mask_and_argument_tell_differently(self) -> None:
        for value in (WINDOW - 1, 2 * WINDOW):
            model = build("mistral_window")
            model.model.layers[1].self_attn.config = type(model.config)(**model.config.to_dict() | {"sliding_window": value})
            model.model.layers[1].self_attn.config._attn_implementation = IMPLEMENTATION
            with pytest.raises(UserError, match=f"sliding_window={value} but a mask of {WINDOW} keys"):
                wrap_model(model, None, name="toy")

    def test_an_argument_that_is_not_known(self) -> None:
        loaded = shared("llama")
        with Bridge(loaded, None), pytest.raises(UserError, match=r"may change it \(block_indices\) in LlamaAttention"):
            loaded.model(input_ids=tokens(1, 8), block_indices=torch.zeros(1))

    def test_no_mask_at_all(self, monkeypatch: pytest.MonkeyPatch) -> None:
        loaded = load("llama")
        monkeypatch.setattr("transformers.models.llama.modeling_llama.create_causal_mask", lambda **_: None)
        with Bridge(loaded, None), pytest.raises(UserError, match="attends without a mask"):
            loaded.model(input_ids=tokens(1, 8))

    def test_a_mask_that_is_written_out(self, monkeypatch: pytest.MonkeyPatch) -> None:
        loaded = load("llama")

        def written_out(**arguments: Any) -> Any:
            return masking_utils.create_causal_mask(**arguments, and_mask_function=lambda b, h, q, k: k >= 0)

        monkeypatch.setattr("transformers.models.llama.modeling_llama.create_causal_mask", written_out)
        with Bridge(loaded, None), pytest.raises(UserError, match="mask written out"):
            loaded.model(input_ids=tokens(1, 8))

    def test_a_cache_that_forgets_what_the_mask_shows(self) -> None:
        config = LlamaConfig(**build("llama").config.to_dict() | {"sliding_window": 8})
        with pytest.raises(UserError, match="layer 0 attends to all keys, but transformers' cache holds 8"):
            wrap_model(LlamaForCausalLM(config), None, name="toy")


def test_what_attention_returns_is_contiguous() -> None:
    """Some models call .view on it, which transformers' own functions allow."""
    loaded, shape = shared("llama"), (1, 4, 6, 16)
    attention = loaded.model.model.layers[0].self_attn
    q, k = torch.randn(shape), torch.randn(1, 2, 6, 16)
    with Bridge(loaded, None):
        out, _ = AttentionInterface()[IMPLEMENTATION](attention, q, k, k, LayerMask(6), scaling=0.25)
    assert out.is_contiguous()
    torch.testing.assert_close(out, dense_attention(q, k, k, scale=0.25).transpose(1, 2))
