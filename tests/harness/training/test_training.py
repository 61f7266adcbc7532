"""The bundled model's recipe: tokenizer, mixture, batches, optimiser, and a run of it at toy size."""

from __future__ import annotations

import os
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from harness.core.errors import UserError
from harness.training.bundled_model.batches import collate, draw_length, longest, skipping_positions
from harness.training.bundled_model.corpus import Corpus, build_corpus, read_texts
from harness.training.bundled_model.mixture import KINDS, Mixture, fits_mixture
from harness.training.bundled_model.muon import BatchedMuon
from harness.training.bundled_model.pieces import Row
from harness.training.bundled_model.pretrain import pretrain
from harness.training.bundled_model.probe import answers_right
from harness.training.bundled_model.recipe import PretrainRecipe
from harness.training.bundled_model.save import save_model
from harness.training.bundled_model.tokenizer import train_tokenizer
from harness.training.bundled_model.train_log import TrainLog
from harness.training.gates.rows import from_mixture

WORDS = [
    "apple",
    "river",
    "stone",
    "quiet",
    "market",
    "engine",
    "winter",
    "letter",
    "garden",
    "silver",
    "window",
    "captain",
    "morning",
    "harbour",
]


def prose(sentences: int, seed: int = 0) -> str:
    rng = random.Random(seed)
    return " ".join(" ".join(rng.choices(WORDS, k=8)).capitalize() + "." for _ in range(sentences))


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(iter([prose(6000)]), 600)


@pytest.fixture(scope="module")
def corpus(tokenizer) -> Corpus:
    return build_corpus({"a": prose(6000)}, tokenizer)


@pytest.fixture
def mixture(tokenizer, corpus: Corpus) -> Mixture:
    # A new one for every test: what it draws follows from how many rows were drawn before.
    return Mixture(tokenizer, corpus, seed=3)


def test_tokenizer_round_trips_and_joins(tokenizer) -> None:
    parts = [
        "One of",
        " the special",
        " magic",
        " numbers",
        " for",
        " apple",
        "-stone",
        " is:",
        " 1234567",
        ".",
        "\n",
        "VAR",
        " XQZ",
        " =",
        " 9",
    ]
    text = "".join(parts)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert ids == [t for p in parts for t in tokenizer(p, add_special_tokens=False)["input_ids"]]
    assert tokenizer(text)["input_ids"][0] == tokenizer.bos_token_id
    assert tokenizer.decode(tokenizer("tab\té ☃", add_special_tokens=False)["input_ids"]) == "tab\té ☃"


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "prose"])
@pytest.mark.parametrize("length", [400, 3000])
def test_pieces_are_what_the_tokenizer_would_say(mixture: Mixture, tokenizer, kind: str, length: int) -> None:
    row = Row([], [])
    mixture.add_episode(kind, row, length)
    text = tokenizer.decode(row.ids)
    joined = [
        t
        for part in text.split("<eos>")
        for t in [*tokenizer(part, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    ][:-1]
    assert joined == row.ids
    assert any(row.answer) and len(row.ids) == len(row.answer)


def test_every_value_asked_for_stands_in_the_text(mixture: Mixture, tokenizer) -> None:
    for hay in ("needle", "essay", "noise"):
        row = Row([], [])
        mixture.add_episode(hay, row, 4000)
        text = tokenizer.decode(row.ids)
        context, _, questions = text.partition("\nWhat ")
        for block in questions.split("<eos>")[:-1]:
            answers = block.rsplit(" mentioned in the provided text ", 1)[1].split(" ", 1)[1].rstrip(".")
            for value in answers.split(", "):
                assert f"is: {value}." in context


def test_rows_have_the_length_asked_for(mixture: Mixture) -> None:
    for length in (256, 1024, 5000):
        ids, answer = mixture.row(length)
        assert ids.shape == answer.shape == (length,)
        assert ids[0] == mixture.bos


def test_lengths_grow_and_are_mixed() -> None:
    assert longest(0.0, 131072) == 512 and longest(1.0, 131072) == 131072 and longest(1.0, 4096) == 4096
    drawn = Counter(draw_length(random.Random(i), 0.9, 131072) for i in range(400))
    assert set(drawn) == {256 << i for i in range(10)}


def test_skipping_positions_rise_and_stay_in_range() -> None:
    for seed in range(50):
        positions = skipping_positions(random.Random(seed), 512, 131072)
        assert positions[0] == 0 and (np.diff(positions) >= 1).all() and positions[-1] < 131072


def test_collate_scores_the_token_after() -> None:
    ids = np.arange(64, dtype=np.uint16).reshape(2, 32)
    answer = np.zeros((2, 32), dtype=bool)
    answer[0, 10:12] = True
    batch = collate([(ids[i], answer[i]) for i in range(2)], np.arange(32), random.Random(0))
    assert (batch.targets == batch.ids.ravel()[batch.where] + 1).all()
    heavy = batch.targets[batch.weights == 1.0]
    assert heavy.tolist() == [10, 11]
    assert not (batch.where % 32 == 31).any(), "a row's last token has no next one"


def test_batched_muon_is_torch_muon() -> None:
    torch.manual_seed(0)
    batched_params = [torch.nn.Parameter(torch.randn(s)) for s in [(32, 32), (32, 32), (64, 32), (32, 64)]]
    torch_params = [torch.nn.Parameter(p.detach().clone()) for p in batched_params]
    a = BatchedMuon(batched_params, lr=0.01, weight_decay=0.1)
    b = torch.optim.Muon(torch_params, lr=0.01, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    for _ in range(4):
        for p, q in zip(batched_params, torch_params, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        a.step()
        b.step()
    for p, q in zip(batched_params, torch_params, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-3)


SAVED = [
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "train_log.jsonl",
    "training.png",
]


def test_a_toy_run_learns_and_is_saved(tmp_path) -> None:
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "a.txt").write_text(prose(4000))
    recipe = PretrainRecipe(
        str(tmp_path / "books"),
        str(tmp_path / "out"),
        vocab_size=400,
        hidden=32,
        intermediate=64,
        layers=1,
        heads=2,
        kv_heads=1,
        head_dim=16,
        tokens=1024,
        steps=25,
        max_length=512,
        max_seconds=60,
        device="cpu",
        compile=False,
        workers=0,
        probe_rows=1,
        stdlib=False,
    )
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.safetensors").write_text("of a model before")
    (tmp_path / "out" / "train_log.unfinished.jsonl").write_text('{"step": 1, "loss": 0.0}\n')  # of a killed training
    out = pretrain(recipe)
    assert sorted(path.name for path in out.iterdir()) == SAVED
    import json

    rows = [json.loads(line) for line in (out / "train_log.jsonl").read_text().splitlines()]
    losses = [r["loss"] for r in rows if "loss" in r]
    assert losses[-1] < 5.6, "uniform over 400 tokens is 5.99"
    assert [r["step"] for r in rows if "loss" in r] == [1, 25]
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.dtype == torch.bfloat16 and AutoTokenizer.from_pretrained(out).eos_token_id == model.config.eos_token_id


def test_a_model_is_never_made_of_two(tmp_path: Path) -> None:
    class Files:
        def __init__(self, *names: str) -> None:
            self.names = names

        def save_pretrained(self, folder: Path, **_: object) -> None:
            for name in self.names:
                (folder / name).write_text("new")

    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (tmp_path / name).write_text("old")
    seen: list[dict[str, str]] = []

    def replaced(path: Path, target: Path) -> None:
        seen.append({file.name: file.read_text() for file in tmp_path.iterdir() if file.is_file()})
        os.replace(path, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", replaced)
        save_model(Files("model.safetensors", "config.json"), Files("tokenizer.json"), tmp_path)  # type: ignore[arg-type]
    assert len(seen) == 3 and all("model.safetensors" not in files for files in seen)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(
        seen[0] | {"model.safetensors": ""}, "new"
    )


def test_a_loss_that_is_not_finite_stops_the_training(tmp_path: Path) -> None:
    log = TrainLog(tmp_path / "log.jsonl")
    with pytest.raises(UserError, match="step 7: the loss is nan; probably too large a step"):
        log.write_losses([torch.tensor([torch.nan, 1.0])], step=7, seconds=1.0, done=0.5, tokens=1, length=1)
    assert not log.path.exists()


def test_probe_counts_whole_answers(mixture: Mixture) -> None:
    class Echo(torch.nn.Module):
        """A model that always knows the next token, or never does."""

        def __init__(self, right: bool) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))
            self.right, self.model, self.lm_head = right, self.hidden, torch.nn.Identity()

        def hidden(self, input_ids, use_cache):
            nxt = torch.roll(input_ids, -1, 1) + (0 if self.right else 1)
            out = torch.nn.functional.one_hot(nxt % 600, 600).float()
            return type("Out", (), {"last_hidden_state": out})

    for right in (True, False):
        good, asked = answers_right(Echo(right), mixture, "needle", 1000, 4)  # type: ignore[arg-type]
        assert asked >= 4 and good == (asked if right else 0)


def test_no_text_is_one_line(tmp_path) -> None:
    with pytest.raises(UserError, match=r"no \.txt file"):
        read_texts(tmp_path)


def test_a_text_that_is_too_short_for_a_mixture_is_refused(mixture: Mixture, tokenizer) -> None:
    assert from_mixture(mixture, 256).shape == (256,)
    with pytest.raises(UserError, match="too few for rows of 1000000: give more text, or shorter"):
        from_mixture(mixture, 1_000_000)
    with pytest.raises(UserError, match="begins 0 sentences, too few for rows of 8"):
        from_mixture(Mixture(tokenizer, build_corpus({"a": "no sentence begins anywhere here " * 20}, tokenizer)), 8)


def test_corpus_starts_begin_sentences(mixture: Mixture, tokenizer) -> None:
    corpus: Corpus = mixture.pieces.corpus
    for at in corpus.starts[:20]:
        assert tokenizer.decode(corpus.tokens[at : at + 1].tolist()).startswith(" ")
        assert tokenizer.decode(corpus.tokens[at - 1 : at].tolist()).endswith(".")


def test_the_bundled_tokenizer_suits_its_mixture(tokenizer) -> None:
    assert fits_mixture(tokenizer)
