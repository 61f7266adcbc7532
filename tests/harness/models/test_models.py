"""Loading models from folders, and the one line that says what is wrong when that fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from harness.core.errors import UserError
from harness.models import source
from harness.models.loading import ModelConfig, load_model, revision_hash, wrap_model
from tests.harness.tiny import VOCAB, build, tokens

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder: tiny llama, tokenizer of as many words."""
    path = tmp_path / "model"
    build("llama").save_pretrained(path)
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(VOCAB)}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=words, bos_token="w1", eos_token="w2").save_pretrained(path)
    return path


def test_folder(folder: Path) -> None:
    loaded = load_model(ModelConfig("tiny", str(folder), device="cpu"))
    assert (loaded.layers, loaded.heads, loaded.kv_heads, loaded.head_dim) == (2, 4, 2, 16)
    assert (loaded.name, loaded.path, loaded.max_length) == ("tiny", folder, 512)
    assert loaded.dtype == torch.float32
    assert not loaded.model.training
    assert not any(p.requires_grad for p in loaded.model.parameters())
    ids = tokens(1, 20)
    torch.testing.assert_close(loaded.model(ids).logits, build("llama")(ids).logits.detach())


def test_dtype(folder: Path) -> None:
    loaded = load_model(ModelConfig("tiny", str(folder), dtype=torch.bfloat16, device=torch.device("cpu")))
    assert {p.dtype for p in loaded.model.parameters()} == {torch.bfloat16}
    assert loaded.model.model.rotary_emb.inv_freq.dtype == torch.float32, "as transformers loads it: positions would be rounded"
    in_memory = wrap_model(build("llama"), None, name="tiny", dtype=torch.bfloat16)
    ids = tokens(1, 300)
    expected = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)(ids).logits
    assert torch.equal(loaded.model(ids).logits, expected)
    assert torch.equal(in_memory.model(ids).logits, expected)


def test_revision_hash_follows_the_model_alone(folder: Path) -> None:
    first = revision_hash(folder)
    save_file({"gate": torch.zeros(2)}, folder / "gates-64.safetensors")
    assert revision_hash(folder) == first == load_model(ModelConfig("tiny", str(folder), device="cpu")).revision_hash
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    assert revision_hash(folder) != first


def test_bundled(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "BUNDLED", folder)
    assert load_model(ModelConfig("bundled", "bundled", device="cpu")).path == folder


class TestErrors:
    def fails(self, path: Path | str, match: str) -> None:
        with pytest.raises(UserError, match=match) as caught:
            load_model(ModelConfig("x", str(path), device="cpu"))
        assert "\n" not in str(caught.value)

    def test_bundled_missing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(source, "BUNDLED", tmp_path)
        self.fails("bundled", "python -m harness job=pretrain")

    def test_no_such_folder(self, tmp_path: Path) -> None:
        self.fails(tmp_path / "nowhere", "does not exist")

    def test_folder_without_a_model(self, tmp_path: Path) -> None:
        self.fails(tmp_path, "config.json and model")

    def test_hub_without_network(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        self.fails("nobody/no-such-model", "give its folder: model=hf model.path=FOLDER")

    def test_missing_weights(self, folder: Path) -> None:
        file = folder / "model.safetensors"
        weights = load_file(file)
        del weights["model.layers.1.self_attn.q_proj.weight"]
        save_file(weights, file, metadata={"format": "pt"})
        self.fails(folder, r"lack 1 tensors .*layers\.1\.self_attn\.q_proj")

    def test_corrupt_weights(self, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"no weights")
        self.fails(folder, "can't load the model in")

    def test_no_tokenizer(self, folder: Path) -> None:
        for file in folder.glob("tokenizer*"):
            file.unlink()
        self.fails(folder, "can't load the model in")

    def test_tokenizer_of_another_model(self, folder: Path) -> None:
        words = Tokenizer(WordLevel({f"w{i}": i for i in range(VOCAB + 5)}, unk_token="w0"))
        PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)
        self.fails(folder, "not a pair")

    def test_no_decoder(self, folder: Path) -> None:
        (folder / "config.json").write_text(json.dumps({"model_type": "t5", "architectures": ["T5Model"]}))
        self.fails(folder, "can't load the model in")
