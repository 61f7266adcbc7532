"""How long a text a model takes, by its config and by the user's word; and the line that names the setting."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from transformers import GPT2Config, LlamaConfig, Phi3Config, PreTrainedConfig

from harness.core.errors import UserError
from harness.models.length_check import check_length
from harness.models.loading import wrap_model
from harness.models.max_length import max_length
from harness.study.identity import ArmIdentity, Cell, Samples, Setting
from tests.harness.tiny import build, shared

pytestmark = pytest.mark.filterwarnings("ignore")


def llama(length: int, **rope: Any) -> PreTrainedConfig:
    return LlamaConfig(max_position_embeddings=length, rope_parameters={"rope_theta": 1e4, **rope})


LLAMA3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
PHI3 = Phi3Config(
    hidden_size=64,
    num_attention_heads=4,
    max_position_embeddings=131072,
    original_max_position_embeddings=4096,
    rope_parameters={"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 8, "long_factor": [2.0] * 8},
)


@pytest.mark.parametrize(
    ("config", "length"),
    [
        (llama(1000, rope_type="default"), 1000),
        (llama(1000, rope_type="yarn", factor=4.0, original_max_position_embeddings=1000), 4000),
        (llama(4000, rope_type="yarn", factor=4.0, original_max_position_embeddings=1000), 4000),
        (llama(1000, rope_type="linear", factor=4.0, original_max_position_embeddings=1000), 4000),
        (llama(4000, rope_type="linear", factor=4.0, original_max_position_embeddings=1000), 4000),
        (llama(1000, rope_type="dynamic", factor=4.0, original_max_position_embeddings=1000), 4000),
        (llama(1000, rope_type="linear", factor=4.0), 1000),
        (llama(1000, rope_type="dynamic", factor=4.0), 1000),
        (llama(131072, factor=32.0, original_max_position_embeddings=8192, **LLAMA3), 131072),
        (PHI3, 131072),
    ],
)
def test_scaled_rope_reaches_its_factor_times_the_original_length(config: PreTrainedConfig, length: int) -> None:
    assert max_length(config, None, "toy") == length
    assert max_length(config, 200_000, "toy") == 200_000, "the user's word"
    assert max_length(config, 10, "toy") == 10


def test_what_has_no_rope_ends_where_its_positions_do() -> None:
    assert max_length(GPT2Config(), 512, "toy") == 512
    with pytest.raises(UserError, match=r"model.max_length=2000: toy has 1024 positions and no RoPE"):
        max_length(GPT2Config(), 2000, "toy")
    unknown = PreTrainedConfig()
    assert max_length(unknown, 2000, "toy") == 2000
    with pytest.raises(UserError, match=r"no max_position_embeddings: .* model.max_length=TOKENS"):
        max_length(unknown, None, "toy")


@pytest.mark.parametrize(
    ("rope", "says"),
    [
        (
            {"rope_type": "default"},
            r"has a context of 512 tokens; choose 512 or less; model.max_length=600 allows more than its config says$",
        ),
        ({"rope_type": "linear", "factor": 8.0}, r"its linear RoPE has the factor 8: if 512 .* say model.max_length=4096$"),
        ({"rope_type": "dynamic", "factor": 2.0}, r"its dynamic RoPE has the factor 2: if 512 .* say model.max_length=1024$"),
    ],
)
def test_a_text_that_is_too_long_names_the_setting(rope: dict[str, Any], says: str) -> None:
    model = build("llama")
    model.config.rope_parameters = {"rope_theta": 1e4, **rope}
    loaded = wrap_model(model, None, name="toy")
    check_length(loaded, 512, "length=512")
    with pytest.raises(UserError, match=says):
        check_length(loaded, 600, "length=600")
    asked = wrap_model(model, None, name="toy", max_length=550)
    assert (asked.max_length, asked.asked_length) == (550, 550)
    with pytest.raises(UserError, match=r"has a context of 550 tokens; choose less; model.max_length=550 says so"):
        check_length(asked, 600, "length=600", advice="choose less")


def test_the_identity_has_the_length_only_where_it_was_set() -> None:
    assert shared("llama").asked_length is None
    setting = Setting("toy", "abc", 512, 0, "float32", "cpu", "sdpa")
    cell = Cell(ArmIdentity(setting, "dense", 0.0), Samples("niah", "1", {}, False))
    other = replace(cell, arm=replace(cell.arm, setting=replace(setting, max_length=8192)))
    assert "max_length" not in cell.as_dict()
    assert other.as_dict()["max_length"] == 8192
    assert (other.id, other.pair) != (cell.id, cell.pair)
