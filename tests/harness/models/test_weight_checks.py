"""A checkpoint that is not what its config says is refused in one line; what a model may lack or carry is not."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from harness.core.errors import UserError
from harness.models.loading import ModelConfig, load_model, revision_hash
from harness.models.weight_checks import check_finite, check_stored_types, check_tensors, first_not_finite
from tests.harness.log_lines import LogLines
from tests.harness.tiny import build

UP = "model.layers.1.mlp.up_proj.weight"
NAN = float("nan")

Change = Callable[[dict[str, Tensor]], object]


@pytest.fixture(scope="module")
def toy_copy(toy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes a folder of the toy model with other weights and other settings."""

    def copy(change: Change, **config: object) -> Path:
        folder = tmp_path_factory.mktemp("changed")
        for file in toy_folder.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        state = load_file(folder / "model.safetensors")
        change(state)
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        settings = json.loads((folder / "config.json").read_text()) | config
        (folder / "config.json").write_text(json.dumps(settings))
        return folder

    return copy


def load(folder: Path) -> object:
    return load_model(ModelConfig("toy", str(folder), dtype=torch.float32, device="cpu"))


@pytest.mark.parametrize(
    ("change", "config", "message"),
    [
        (lambda s: s.update(extra=torch.ones(2)), {}, r"have 1 tensors \(extra\)"),
        (lambda s: None, {"num_hidden_layers": 1}, r"have 9 tensors \(model\.layers\.1\.input_layernorm\.weight, "),
        (lambda s: None, {"num_hidden_layers": 3}, r"lack 9 tensors \(model\.layers\.2\.input_layernorm\.weight, "),
        (
            lambda s: s.update({UP: s[UP][:40].clone()}),
            {},
            rf"{UP} has shape \[40, 32\], by config\.json it must be \[48, 32\]",
        ),
        (lambda s: s.update({UP: s[UP].to(torch.int64)}), {}, rf"model\.safetensors: {UP} is of type I64"),
        (lambda s: s.update({UP: s[UP] > 0}), {}, rf"model\.safetensors: {UP} is of type BOOL"),
        (lambda s: s.update({UP: s[UP].to(torch.float8_e4m3fn)}), {}, rf"model\.safetensors: {UP} is of type F8_E4M3"),
        (lambda s: s[UP][3, 4].fill_(NAN), {}, rf"{UP} holds NaN or infinite values in float32"),
        (lambda s: s[UP][3, 4].fill_(-float("inf")), {}, rf"{UP} holds NaN or infinite values"),
    ],
)
def test_weights_that_are_not_what_they_say(
    toy_copy: Callable[..., Path],
    logged: LogLines,
    monkeypatch: pytest.MonkeyPatch,
    change: Change,
    config: dict[str, object],
    message: str,
) -> None:
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    with pytest.raises(UserError, match=message) as caught:
        load(toy_copy(change, **config))
    assert "\n" not in str(caught.value) and "LOAD REPORT" not in logged.text


def test_what_a_checkpoint_may_lack_or_carry(toy_copy: Callable[..., Path]) -> None:
    """Rotary frequencies of older checkpoints, a head that is tied, and wider floats."""

    def change(state: dict[str, Tensor]) -> None:
        del state["lm_head.weight"]
        state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
        state[UP] = state[UP].double()

    load(toy_copy(change, tie_word_embeddings=True))


def test_a_sum_that_overflows_is_no_infinity() -> None:
    large = torch.full((64,), 60000.0).half()
    assert not large.sum().isfinite() and first_not_finite({"large": large, "empty": torch.empty(0)}) is None
    assert first_not_finite({"large": large, "bad": torch.tensor([1.0, NAN])}) == "bad"


def test_scales_beside_quantised_weights_are_no_other_model() -> None:
    """FP8 checkpoints carry scales of a cache; a layer that the model has not is refused there too."""
    model = build("llama")
    info = {"mismatched_keys": set(), "missing_keys": set(), "unexpected_keys": {"model.layers.0.self_attn.k_scale"}}
    with pytest.raises(UserError, match="k_scale"):
        check_tensors(model, info, "here")
    model.config.quantization_config = {"quant_method": "fp8"}
    check_tensors(model, info, "here")
    with pytest.raises(UserError, match=r"have 1 tensors \(model\.layers\.9"):
        check_tensors(model, info | {"unexpected_keys": {"model.layers.9.self_attn.k_scale"}}, "here")


def test_quantised_weights_and_computed_buffers_are_left_alone() -> None:
    module = nn.Linear(2, 2, bias=False)
    module.register_buffer("codes", torch.ones(2, dtype=torch.uint8))
    module.register_buffer("mask", torch.tensor([-float("inf")]), persistent=False)
    check_finite(module, "here")
    module.register_buffer("scales", torch.tensor([NAN]))
    with pytest.raises(UserError, match="here: scales holds NaN"):
        check_finite(module, "here")


def test_the_types_of_all_shards_are_looked_at_and_of_no_other_file(toy_folder: Path, tmp_path: Path) -> None:
    loaded = load_model(ModelConfig("toy", str(toy_folder), dtype=torch.float32, device="cpu"))
    loaded.model.save_pretrained(tmp_path, max_shard_size="20KB")
    save_file({UP: torch.ones(2, dtype=torch.int8)}, tmp_path / "model-int8.safetensors")
    assert len(list(tmp_path.glob("model-0*.safetensors"))) > 1
    check_stored_types(loaded.model, tmp_path)
    last = max(tmp_path.glob("model-0*.safetensors"))
    state = load_file(last)
    name = sorted(state)[-1]
    save_file(state | {name: state[name].int()}, last)
    with pytest.raises(UserError, match=rf"{last.name}: {name} is of type I32"):
        check_stored_types(loaded.model, tmp_path)


def test_a_model_that_is_saved_again_keeps_its_hash(toy_folder: Path, tmp_path: Path) -> None:
    loaded = load_model(ModelConfig("toy", str(toy_folder), dtype=torch.float32, device="cpu"))
    hashes = set()
    for number in range(3):
        loaded.model.save_pretrained(tmp_path / str(number))
        hashes.add(revision_hash(tmp_path / str(number)))
    assert len(hashes) == 1
