"""Undoing rotary embeddings, by hand and on transformers models."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from harness.models.rope import ModelRope
from methods.parts.rope import rope_apply, rope_undo
from tests.methods.support import PlainRope


@pytest.mark.parametrize("rotary", [16, 8])
@pytest.mark.parametrize("scaling", [1.0, 1.37])
def test_undo_is_the_inverse(rotary: int, scaling: float) -> None:
    x = torch.randn(2, 3, 40, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    cos, sin = PlainRope(rotary, scaling).cos_sin(torch.arange(1000, 1040))
    cos, sin = cos.double(), sin.double()
    torch.testing.assert_close(rope_undo(rope_apply(x, cos, sin), cos, sin), x)
    torch.testing.assert_close(rope_apply(rope_undo(x, cos, sin), cos, sin), x)
    assert torch.equal(rope_apply(x, cos, sin)[..., rotary:], x[..., rotary:])


def test_apply_turns_pairs_by_the_angle() -> None:
    x = torch.randn(1, 5, 16, dtype=torch.float64)
    positions = torch.arange(5)
    cos, sin = PlainRope().cos_sin(positions)
    turned = rope_apply(x, cos, sin)
    pairs = torch.complex(x[..., :8], x[..., 8:])
    angles = positions[:, None].double() * 10000.0 ** (-torch.arange(0, 16, 2).double() / 16)
    expected = pairs * torch.polar(torch.ones_like(angles), angles)
    torch.testing.assert_close(turned, torch.cat((expected.real, expected.imag), -1), atol=1e-6, rtol=1e-5)


def test_half_precision_is_turned_in_float32() -> None:
    x = torch.randn(1, 5, 16, dtype=torch.bfloat16)
    cos, sin = PlainRope().cos_sin(torch.arange(5))
    assert rope_apply(x, cos, sin).dtype == torch.float32
    torch.testing.assert_close(rope_undo(rope_apply(x, cos, sin), cos, sin), x.float())


def test_more_rotary_elements_than_there_are() -> None:
    cos, sin = PlainRope(32).cos_sin(torch.arange(5))
    with pytest.raises(ValueError, match="32 rotary elements for heads of 16"):
        rope_apply(torch.randn(1, 5, 16), cos, sin)


# -- the tables of a model -------------------------------------------------------------------------------------------


def llama() -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=8,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=1,
            num_key_value_heads=1,
            head_dim=16,
        )
    ).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_table_is_half_of_cos_and_sin(dtype: torch.dtype) -> None:
    rope = ModelRope(llama().to(dtype), 0)
    for length in (5, 9000, 40):
        for table, full in zip(rope.table(length, torch.device("cpu")), rope.cos_sin(torch.arange(length)), strict=True):
            assert table.shape == (length, 8)
            assert table.dtype == torch.float32
            torch.testing.assert_close(torch.cat((table, table), -1), full, rtol=0, atol=1e-7 if dtype == torch.float32 else 0)


def test_layers_share_a_table_and_other_frequencies_get_their_own() -> None:
    model, cpu = llama(), torch.device("cpu")
    with torch.inference_mode():
        first, again = ModelRope(model, 0).table(100, cpu)[0], ModelRope(model, 1).table(50, cpu)[0]
    assert first.data_ptr() == again.data_ptr()
    assert not first.is_inference(), "an evaluation's table serves training too"
    assert ModelRope(llama(), 0).table(100, cpu)[0].data_ptr() != first.data_ptr()
    rotary = model.model.rotary_emb
    rotary.inv_freq = rotary.inv_freq / 2  # what dynamic types do when a prompt is long
    rope = ModelRope(model, 0)
    torch.testing.assert_close(rope.table(100, cpu)[0], rope.cos_sin(torch.arange(100))[0][:, :8])
    assert not torch.equal(rope.table(100, cpu)[0], first)
