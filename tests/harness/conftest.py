"""A toy model in a folder, as a user would name one, loaded once; and the command run on it, its samples made once."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from hydra._internal.hydra import Hydra

from harness.measure import before_loading, sweep
from tests.harness.log_lines import LogLines
from tests.harness.quick_hydra import quick_hydra
from tests.harness.settings import toy_arguments

STOPS = 8
"""One token in so many ends an answer: random models would otherwise go on to the limit of their task."""


@pytest.fixture(scope="session", autouse=True)
def composed_quickly() -> Iterator[None]:
    """Hydra reads conf/ once in a process."""
    with quick_hydra():
        yield


@pytest.fixture
def logged() -> Iterator[LogLines]:
    """The warnings that reach the root logger from here on, whatever commands have told it before. pytest's own `caplog` would
    set up and tear down handlers for each of the thousands of tests that never look at it."""
    lines, root = LogLines(), logging.getLogger()
    level = root.level
    root.addHandler(lines)
    root.setLevel(logging.WARNING)
    yield lines
    root.setLevel(level)
    root.removeHandler(lines)


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


@pytest.fixture(scope="session")
def brief_folder(toy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy model, with more tokens that end an answer."""
    folder = tmp_path_factory.mktemp("brief") / "toy"
    shutil.copytree(toy_folder, folder)
    path = folder / "generation_config.json"
    config = json.loads(path.read_text())
    tokens = json.loads((folder / "config.json").read_text())["vocab_size"]
    path.write_text(json.dumps(config | {"eos_token_id": list(range(1, tokens, STOPS))}))
    return folder


@pytest.fixture(scope="session", autouse=True)
def loaded_once() -> Iterator[None]:
    """One load of each model serves all tests of a process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "load_quietly", lru_cache(maxsize=2)(sweep.load_quietly))
        patch.setattr(before_loading, "describe_quietly", lru_cache(maxsize=2)(sweep.describe_quietly))
        yield


@pytest.fixture(scope="session")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder `.cache/samples` of all commands: samples are made once."""
    return tmp_path_factory.mktemp("samples")


@pytest.fixture
def toy(brief_folder: Path) -> list[str]:
    """The arguments of a short run on the toy model: dense and block_topk, two samples."""
    return toy_arguments(brief_folder)


@pytest.fixture
def command(cache_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The command in this process, in a folder that is empty but for the samples that others have made. It takes arguments, of
    which later ones win, and returns the exit code. Where nothing is swept over, Hydra composes the settings once: the first
    time it would only look for a mode, and conf/ sets none."""
    from harness.__main__ import main

    (tmp_path / ".cache").mkdir(exist_ok=True)
    (tmp_path / ".cache" / "samples").symlink_to(cache_folder)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> int:
        last = {a.partition("=")[0] if "=" in a else a: a for a in arguments}
        with pytest.MonkeyPatch.context() as patch:
            if "-m" not in last:
                patch.setattr(Hydra, "get_mode", lambda *_, **__: None)
            return main(list(last.values()))

    return run


@pytest.fixture
def blank_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw pictures without rendering them, which takes most of a short run's time; tests of their own look at pictures."""
    from matplotlib.figure import Figure

    monkeypatch.setattr(Figure, "savefig", lambda *_, **__: None)
