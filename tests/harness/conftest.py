"""A toy model in a folder, as a user would name one, and the command run on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 2 layers, 4 query and 2 KV heads of 16, context 2048, with a byte-pair tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("toy")
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    text = ["The grass is green. The sky is blue. One of the special magic numbers for apple is: 1234567. " * 3]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet)
    backend.train_from_iterator(text, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=2048,
        bos_token_id=0,
        eos_token_id=1,
        initializer_range=0.3,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def toy(toy_folder: Path) -> list[str]:
    """The arguments of a short run on the toy model."""
    return [
        "model=hf",
        f"model.path={toy_folder}",
        "model.name=toy",
        "model.chat_template=false",
        "device=cpu",
        "length=1024",
        "samples=2",
        "task=niah_single_1",
        "method=block_topk",
        "sparsity=0.5",
        "latency=false",
        "batch_tokens=1",
        "study=toy",
    ]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The command in this process, in an empty folder; takes arguments, returns the exit code. Later ones win."""
    from harness.__main__ import main

    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> int:
        last = {a.partition("=")[0] if "=" in a else a: a for a in arguments}
        return main(list(last.values()))

    return run


@pytest.fixture
def blank_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw pictures without rendering them, which takes most of a short run's time; tests of their own look at pictures."""
    from matplotlib.figure import Figure

    monkeypatch.setattr(Figure, "savefig", lambda *_, **__: None)
