"""Models by shape: which there are, what is drawn, and what is refused before anything is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import harness
from harness.core.conf_files import defaults, groups
from harness.core.errors import UserError
from harness.core.settings import Settings
from harness.measure.sweep import load_quietly, model_config
from harness.models import shape as shapes
from harness.models.description import describe_model
from harness.models.loading import LoadedModel
from harness.models.shape import ModelShape, draw_model, empty_model
from tests.harness.settings import TINY_SIZES, composed, merged, tiny_shape

TINY: dict[str, Any] = {"model_type": "llama", **TINY_SIZES, "rope_theta": 500000.0}
MILLIONS = {"llama3_1b": 1236, "llama3_3b": 3213, "llama3_8b": 8030, "qwen2_5_7b": 7616}
"""Parameters of the releases, in millions."""


def settings(*arguments: str) -> Settings:
    """The settings of a latency job on a toy by shape."""
    return composed(*tiny_shape("job=latency", "device=cpu", "length=512", *arguments))


def weights(seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """The weights that are drawn for the toy."""
    state: dict[str, torch.Tensor] = draw_model(ModelShape.of(TINY, seed), "toy", torch.device("cpu"), dtype).state_dict()
    return state


@pytest.mark.parametrize("name", MILLIONS)
def test_a_file_has_the_size_of_its_release(name: str) -> None:
    file = defaults("model", f"shape/{name}")
    assert file["name"] == f"shape/{name}" and f"shape/{name}" in groups()["model"]
    empty = empty_model(ModelShape.of(file["shape"], 0), name, torch.bfloat16)
    assert round(sum(weight.numel() for weight in empty.parameters()) / 1e6) == MILLIONS[name]
    config = empty.config
    assert config.max_position_embeddings == 131072 and config.rope_parameters["rope_theta"] >= 500000
    assert config.rope_parameters["rope_type"] == ("llama3" if config.model_type == "llama" else "default")


def test_weights_are_of_the_seed_and_in_the_dtype_and_draw_from_no_other_stream() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first, again, other = weights(), weights(), weights(seed=1)
    assert torch.equal(torch.rand(3), expected), "what else draws at random goes on as without"
    name = "model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(first[name], again[name]) and not torch.equal(first[name], other[name])
    assert 0.015 < first[name].std() < 0.025
    assert {weight.dtype for weight in weights(dtype=torch.bfloat16).values()} == {torch.bfloat16}


def test_a_loaded_model_says_that_it_is_random() -> None:
    config = model_config(settings("dtype=bfloat16"))
    described, loaded = describe_model(config), load_quietly(config)
    assert isinstance(described, LoadedModel) and loaded.shape == described.shape == config.shape
    assert loaded.tokenizer is None and loaded.path is None and loaded.source is None
    assert loaded.revision_hash == described.revision_hash and loaded.revision_hash.startswith("random-")
    assert (loaded.layers, loaded.heads, loaded.kv_heads, loaded.head_dim, loaded.max_length) == (2, 4, 2, 16, 131072)
    frequencies = [buffer.dtype for name, buffer in loaded.model.named_buffers() if name.endswith("inv_freq")]
    assert set(frequencies) == {torch.float32}
    other = model_config(replace(settings("dtype=bfloat16"), seed=1))
    assert other.shape is not None and other.shape.hash != loaded.revision_hash


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"model_type": "lama"}, r"model_type=lama is no decoder of transformers \(did you mean llama\?\)"),
        ({"model_type": None}, "model_type=null is no decoder"),
        ({"qk_norm": True}, "model.shape.qk_norm is no size of a llama model"),
        ({"head_dimm": 8}, r"head_dimm is no size of a llama model \(did you mean head_dim\?\)"),
        ({"dtype": "float16"}, "dtype=float16: weights are drawn in dtype=, so leave it out"),
        ({"num_attention_heads": 5}, "not a multiple of the number of attention heads"),
        ({"num_key_value_heads": 3}, "toy has 4 query heads, which must be a multiple of its 3 KV heads"),
        ({"num_hidden_layers": 0}, "num_hidden_layers=0: must be a whole number of at least 1"),
        ({"num_hidden_layers": 10**6}, "at most 1000"),
        ({"num_hidden_layers": "two"}, "Field 'num_hidden_layers' expected int, got str"),
        ({"vocab_size": 2}, "vocab_size=2: must be a whole number of at least 4"),
        ({"head_dim": 17}, "RoPE requires an even rotary dimension"),
        ({"hidden_act": "foo"}, "transformers knows nothing that is called foo"),
        ({"pad_token_id": 999}, "pad_token_id.* is not below its vocab_size; give pad_token_id=0"),
        ({"architectures": ["LlamaForCausalLM"]}, "model.shape.architectures says nothing of the model's sizes: leave it out"),
        ({"model_type": "mistral", "sliding_window": 0}, "sliding_window=0: must be a whole number of at least 1"),
        ({"rope_theta": "abc"}, "model.shape.rope_theta=abc: must be a number"),
        ({"rope_theta": -1.0}, "model.shape.rope_theta=-1.0: must be a number above 0"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0}}, "rope_scaling.factor=0: must be a number above 0"),
        (
            {"model_type": "gemma3_text", "rope_parameters": {"full_attention": {"rope_theta": 0.0}}},
            "rope_parameters.full_attention.rope_theta=0.0: must be a number above 0",
        ),
        (
            {"rope_scaling": {"rope_type": "lama3"}},
            r"rope_type=lama3 is not known \(did you mean llama3\?\); choose one of",
        ),
        ({"rope_scaling": {"rope_type": "linear", "factr": 2.0}}, r"factr is no setting of RoPE \(did you mean factor\?\)"),
        ({"rope_scaling": {"rope_type": "linear", "factor": "two"}}, "rope_scaling.factor=two: must be a number"),
    ],
)
def test_what_makes_no_model_is_one_line(changes: dict[str, Any], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=line) as raised:
        empty_model(ModelShape.of(TINY | changes, 0), "toy", torch.float32)
    assert "\n" not in str(raised.value) and capsys.readouterr() == ("", "")


def test_a_path_is_no_place_for_a_model_by_shape() -> None:
    """Nor in Python, which takes paths alone."""
    for refused in (
        lambda: merged("model=hf", "model.path=shape/llama3_8b", "model.name=x"),
        lambda: harness.load_model("shape/llama3_8b"),
    ):
        with pytest.raises(UserError, match=r"model by shape is a choice and no path.*job=latency model=shape/llama3_8b$"):
            refused()


def test_sizes_that_only_the_code_of_a_type_reads_are_sizes() -> None:
    """The class of configs of this mixture of experts lists no head_dim, its releases' config.json do."""
    experts = {"moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2}
    values = {name: value for name, value in TINY.items() if name != "rope_theta"} | experts | {"model_type": "qwen3_moe"}
    empty = empty_model(ModelShape.of(values | {"head_dim": 32}, 0), "toy", torch.float32)
    assert empty.model.layers[0].self_attn.head_dim == 32
    with pytest.raises(UserError, match="head_dimm is no size of a qwen3_moe model"):
        empty_model(ModelShape.of(values | {"head_dimm": 32}, 0), "toy", torch.float32)
    inner = {"model_type": "gemma3", "text_config": {"hidden_sizee": 3}}
    with pytest.raises(UserError, match=r"model\.shape\.text_config\.hidden_sizee is no size of a gemma3_text model"):
        empty_model(ModelShape.of(inner, 0), "toy", torch.float32)


def test_a_model_that_does_not_run_without_weights_is_looked_at_with_them() -> None:
    experts = {"model_type": "mixtral", "num_local_experts": 4}
    given = composed("model=shape/custom", "model.name=x", "model.shape={model_type: llama}", "device=cpu")
    config = model_config(replace(given, model=given.model | {"shape": TINY | experts}))
    assert describe_model(config) is None
    assert load_quietly(config).heads == 4
    unsupported = {"model_type": "mamba"}
    with pytest.raises(UserError, match="shape/x has linear_attention; supported are"):
        describe_model(model_config(replace(given, model=given.model | {"shape": unsupported})))


def test_other_types_have_their_own_names_of_sizes() -> None:
    values = {"model_type": "gpt2", "n_layer": 1, "n_embd": 32, "n_head": 2, "vocab_size": 64, "n_positions": 256}
    empty = empty_model(ModelShape.of(values, 0), "toy", torch.float32)
    assert empty.config.num_hidden_layers == 1
    with pytest.raises(UserError, match="n_layer=0: must be a whole number of at least 1"):
        empty_model(ModelShape.of(values | {"n_layer": 0}, 0), "toy", torch.float32)


def test_too_little_memory_is_said_before_anything_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "available_bytes", lambda device: 1000)
    with pytest.raises(UserError, match=r"its weights take 0\.0 GiB in float32, and cpu has 0\.0 GiB left; choose dtype="):
        weights()
    monkeypatch.setattr(shapes, "available_bytes", lambda device: None)  # a system that does not say
    assert weights()


def test_an_error_while_drawing_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForCausalLM

    real = AutoModelForCausalLM.from_config

    def fails(config: Any, dtype: torch.dtype) -> Any:
        if torch.get_default_device().type == "meta":
            return real(config, dtype=dtype)
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    monkeypatch.setattr(AutoModelForCausalLM, "from_config", fails)
    with pytest.raises(UserError, match="toy: its weights do not fit into the memory of cpu: OutOfMemoryError: CUDA out"):
        weights()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["model.path=x"], r"model.path=x: model.shape is given too.*leave one of them out"),
        (["model.gates=x"], "model.gates=x: gates of a model by shape are drawn: leave it out"),
        (["model.released_gates.decode=a/b"], "model.released_gates.decode=a/b: gates of a model by shape are drawn"),
        (["model.chat_template=true"], "model.chat_template=true: a model by shape has no tokenizer"),
        (["model.shape=null"], "model.path=null: must be a name or a path"),
        (["model.shape=5"], "model.shape=5: it has settings below it, those of a config.json"),
        (["model.shape.rope_theta=.inf"], "model.shape.rope_theta=inf: must be a finite number"),
        (["model.shape.layer_types=[[a]]"], r"model.shape.layer_types=\[\['a'\]\]: must be a number, a text, true"),
    ],
)
def test_settings_that_a_model_by_shape_has_no_use_for(arguments: list[str], line: str) -> None:
    with pytest.raises(UserError, match=line):
        merged("model=shape/llama3_8b", *arguments)


def test_names_say_that_weights_are_random_and_what_is_not_as_released() -> None:
    def name(*arguments: str) -> str:
        return str(merged("model=shape/llama3_8b", *arguments).model["name"])

    assert name() == "shape/llama3_8b"
    assert name("model.shape.num_hidden_layers=2") == "shape/llama3_8b (num_hidden_layers=2)"
    assert name("model.shape.rope_scaling.factor=2.0") == "shape/llama3_8b (rope_scaling.factor=2.0)"
    many = [name(*(f"model.shape.{size}={n}" for size in ("vocab_size", "hidden_size", "head_dim"))) for n in (64, 96)]
    assert all("(3 sizes changed, " in text for text in many) and many[0] != many[1]
    assert name("model.name=mine") == "shape/mine"
    with pytest.raises(UserError, match="shape/mine: shape/… is what rows call models of random weights"):
        merged("model=bundled", "model.name=shape/mine")


@pytest.mark.gpu
def test_weights_are_made_on_the_device_alone() -> None:
    """No second copy of the weights is made there, and none on the host."""
    import resource

    values = TINY | {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 4, "vocab_size": 32000}
    shape = ModelShape.of(values | {"num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 128}, 0)
    size = sum(w.numel() * w.element_size() for w in empty_model(shape, "toy", torch.bfloat16).parameters())
    draw_model(ModelShape.of(TINY, 0), "toy", torch.device("cuda"), torch.bfloat16)  # CUDA's own memory of the host
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    model = draw_model(shape, "toy", torch.device("cuda"), torch.bfloat16)
    assert {weight.device.type for weight in model.parameters()} == {"cuda"}
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    assert torch.cuda.max_memory_allocated() - before < 1.2 * size
    assert 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - host) < size / 2
