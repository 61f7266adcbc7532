"""``job=distill`` from the command line: gates that seer then runs with, their curve and their recall."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from harness.arms.weights import model_overrides, weights_folder
from harness.core.conf_files import conf_dir
from harness.core.errors import UserError
from harness.training.gates import distill_command, training_text
from harness.training.gates.rows import TextNeeds, row_sources

Command = Callable[..., int]
NEEDS = TextNeeds(2000, [100])
JOB = (
    "job=distill",
    "method=seer",
    "job.steps=3",
    "job.lengths=[256,384]",
    "job.tokens=512",
    "job.recall_sequences=1",
    "block_size=32",
)


@pytest.fixture(scope="module")
def config(toy_folder: Path) -> DictConfig:
    """The settings of a short training on generated samples, composed once: that takes longer than checking them."""
    model = ["model=hf", f"model.path={toy_folder}", "model.name=toy", "model.chat_template=false", "device=cpu", "study=toy"]
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        return compose("config", [*model, *JOB, "job.rows=samples"])


def changed(config: DictConfig, *settings: str) -> DictConfig:
    """Return a copy of the settings with others, as a command line has them."""
    config = copy.deepcopy(config)
    for override in OverridesParser.create().parse_overrides(list(settings)):
        OmegaConf.update(config, override.key_or_group, override.value())
    return config


def test_gates_are_trained_and_used(command: Command, toy: list[str], tmp_path: Path, request: pytest.FixtureRequest) -> None:
    text = tmp_path / "books"
    text.mkdir()
    (text / "a.txt").write_text("The grass is green and the sky is blue today. " * 3000)
    gates = tmp_path / "made"
    assert command(*toy, *JOB, f"job.out={gates}", f"data.text_dir={text}") == 0
    assert (gates / "gates-32.safetensors").is_file()
    study = tmp_path / "results" / "toy"
    assert len(pd.read_csv(study / "gate_steps_32.csv")) == 3
    recall = pd.read_csv(study / "gate_recall_32.csv")
    assert set(recall["layer"]) == {0, 1} and recall["recall"].between(0, 1).all()
    assert (study / "gates_32.png").stat().st_size > 10_000
    heads = pd.read_csv(study / "gate_recall_heads_32.csv")
    assert set(heads["head"]) == {0, 1, 2, 3} and (study / "gate_recall_heads_32.png").stat().st_size > 10_000
    again = ("job=gate_recall", "method=seer", "job.lengths=[256,384]", "job.sequences=1", "block_size=32", "study=again")
    assert command(*toy, *again, f"model.gates={gates}", f"data.text_dir={text}") == 0
    measured = pd.read_csv(tmp_path / "results" / "again" / "gate_recall_32.csv")
    pd.testing.assert_frame_equal(measured, recall)  # the same gates on the same held-out rows
    request.getfixturevalue("blank_pictures")  # only now: those of the training are looked at above
    assert command(*toy, "method=seer", "method.selection=topk", "block_size=32", f"model.gates={gates}", "samples=1") == 0
    rows = pd.read_csv(study / "leaderboard.csv")
    assert set(rows[rows["method"] == "seer"]["status"]) == {"ok"}


def test_gates_that_are_not_there_can_not_be_measured(
    command: Command, toy: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(*toy, "job=gate_recall", "method=seer", "job.lengths=[256]", f"model.gates={tmp_path}") != 0
    assert "no gates to measure:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("job.lengths=[]", r"job.lengths=[]: must be a list of whole numbers, each at least 64, two blocks"),
        ("job.lengths=4096", "job.lengths=4096: must be a list"),
        ("job.lengths=[0]", "job.lengths=[0]: must be a list"),
        ("job.lengths=[256,63]", "job.lengths=[256, 63]: must be a list"),
        ("job.lengths=[256,a]", "must be a list"),
        ("job.steps=few", "job.steps=few: must be a whole number"),
        ("job.steps=2.5", "job.steps=2.5: must be a whole number"),
        ("job.lr=fast", "job.lr=fast: must be a finite number"),
        ("job.lr=nan", "lr=nan: must be a finite number"),
        ("job.tokens=0", "job.tokens=0: must be a whole number of at least 1"),
        ("job.recall_sequences=-1", "job.recall_sequences=-1: must be a whole number of at least 0"),
        ("job.checkpoint_every=-1", "job.checkpoint_every=-1: must be a whole number of at least 0"),
        ("job.micro_rows=0", "micro_rows=0: must be at least 1"),
        ("method.selection=foo", "selection=foo: must be one of topk, threshold, nz_ratio"),
    ],
)
def test_bad_settings_are_one_line(config: DictConfig, setting: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        distill_command.main(changed(config, setting))
    (line,) = str(error.value).splitlines()
    assert message in line


def test_the_command_says_it(command: Command, toy: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert command(*toy, *JOB, "job.rows=samples", "job.lengths=[0]") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "job.lengths=[0]: must be a list" in line


def test_texts_that_are_refused_leave_no_folder(config: DictConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: object, **__: object) -> None:
        raise UserError("no text")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(training_text, "row_sources", refuses)
    with pytest.raises(UserError, match="no text"):
        distill_command.main(changed(config, f"job.out='{tmp_path / 'below' / 'gates'}'"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("sequences", "lengths"), [(0, []), (1, [256]), (3, [256, 384, 256])])
def test_as_many_sequences_are_held_out_as_asked_for(
    config: DictConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sequences: int, lengths: list[int]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("The grass is green and the sky is blue today. " * 3000)
    seen: list[int] = []

    def fake(*_: object, held_out: list[torch.Tensor], **__: object) -> None:
        seen.extend(sequence.shape[1] for sequence in held_out)
        raise UserError("enough")

    monkeypatch.setattr(distill_command, "distill", fake)
    with pytest.raises(UserError, match="enough"):
        distill_command.main(
            changed(config, f"job.recall_sequences={sequences}", f"data.text_dir='{tmp_path}'", "job.rows=books")
        )
    assert seen == lengths


def test_lengths_beyond_the_context(config: DictConfig) -> None:
    with pytest.raises(UserError, match=r"context of 2048 tokens"):
        distill_command.main(changed(config, "job.lengths=[4096]"))


@pytest.mark.usefixtures("blank_pictures")
def test_gates_are_made_of_generated_samples_without_text_and_not_replaced_unasked(
    config: DictConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    short = [f"job.out='{tmp_path}'", "job.rows=auto", "job.steps=1", "job.lengths=[1024]", "job.recall_sequences=0"]
    assert distill_command.main(changed(config, *short)) == [tmp_path / "gates-32.safetensors"]
    before = (tmp_path / "gates-32.safetensors").read_bytes()
    with pytest.raises(UserError, match=r"gates-32.safetensors exists: add job.overwrite=true"):
        distill_command.main(changed(config, *short, "seed=1"))
    assert (tmp_path / "gates-32.safetensors").read_bytes() == before
    distill_command.main(changed(config, *short, "seed=1", "job.overwrite=true"))
    assert (tmp_path / "gates-32.safetensors").read_bytes() != before


def test_a_folder_that_can_not_be_written_is_found_before_the_training(
    command: Command, toy: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("no folder")
    assert command(*toy, *JOB, "job.rows=samples", f"job.out={tmp_path / 'file' / 'below'}") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "file is no folder); name another folder" in line
    assert not (tmp_path / "results").exists()


@pytest.mark.usefixtures("blank_pictures")
def test_gates_of_the_bundled_model_do_not_go_into_the_package(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = ["device=cpu", "job.steps=1", "job.rows=samples", "job.lengths=[512]", "job.recall_sequences=0", "study=x"]
    assert command("model=bundled", *JOB, *short) == 0
    assert (tmp_path / "gates" / "bundled" / "gates-32.safetensors").is_file()
    assert "to use them: model.gates=gates/bundled\n" in capsys.readouterr().out
    assert command("model=bundled", *JOB, *short, "job.trainings={mass:{pool:mass}}") == 0
    assert "to use them: model.gates=gates/bundled method.gates=mass\n" in capsys.readouterr().out


def test_a_method_without_gates_is_told_which_have_them(
    command: Command, toy: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(*toy, *JOB, "method=block_topk") == 2
    assert "method block_topk has no gates to train; choose one of: seer" in capsys.readouterr().err


def test_q_linear_is_trained_and_used(command: Command, toy: list[str], config: DictConfig, tmp_path: Path) -> None:
    short = [f"job.out='{tmp_path}'", "job.steps=1", "job.lengths=[1024]", "job.recall_sequences=0", "method.q_linear=true"]
    distill_command.main(changed(config, *short))
    assert any(name.endswith("gate.q") for name in load_file(str(tmp_path / "gates-32.safetensors")))
    used = [
        *toy,
        "method=seer",
        "method.selection=topk",
        "block_size=32",
        f"model.gates={tmp_path}",
        "samples=1",
        "report=false",
    ]
    assert command(*used, "method.q_linear=true") == 0
    assert command(*used, "method.q_linear=false") == 2


def test_gates_of_several_poolings_are_trained_together_and_used_apart(
    command: Command, toy: list[str], config: DictConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = [f"job.out='{tmp_path}'", "job.steps=1", "job.lengths=[1024]", "job.recall_sequences=0"]
    own = "{Qmaxmin_Kmax:{pooling:Qmaxmin_Kmax},Qmax_Kmaxminavg:{pooling:Qmax_Kmaxminavg},at_1k_norope:{block_rope:false}}"
    distill_command.main(changed(config, *short, f"job.trainings={own}"))
    said = capsys.readouterr().out
    assert f"model.gates={tmp_path} method.pooling=Qmaxmin_Kmax\n" in said
    assert f"model.gates={tmp_path} method.gates=at_1k method.block_rope=false\n" in said
    first = load_file(str(tmp_path / "gates-32-Qmaxmin_Kmax.safetensors"))
    (query, key) = (first[f"layers.0.gate.{name}"].shape for name in ("q", "k"))
    assert query[1] == 2 * query[2] and key[1] == key[2]
    used = [
        *toy,
        "method=seer",
        "method.selection=topk",
        "block_size=32",
        f"model.gates={tmp_path}",
        "samples=1",
        "report=false",
    ]
    assert command(*used, "method.gates=at_1k", "method.block_rope=false", "job=kept_mass") == 0
    capsys.readouterr()
    for given, message in (
        (["method.gates=Qmax_Kmaxminavg"], "were trained with method.pooling=Qmax_Kmaxminavg"),  # of the same shapes
        (["method.gates=at_1k_norope"], "were trained with method.block_rope=false"),
        (["method.gates=at_1k", "method.pooling=Qavg_Kavg", "method.block_rope=false"], "gates-32-at_1k_Qavg_Kavg_norope."),
        (["method.pooling=Qavg_Kavg"], "gates-32-Qavg_Kavg.safetensors is missing"),
        (["job=distill", "method.pooling=Qavg_Kaverage"], "pooling=Qavg_Kaverage: must be Q and K"),
        (["job=distill", "job.trainings={a:{block_rope:false}}"], "job.trainings.a: its gates are found by their options"),
        (["job=distill", "job.trainings={a:{block_rope:1}}"], "job.trainings.a: block_rope=1: must be true or false"),
    ):
        assert command(*used, *given) == 2
        assert message in capsys.readouterr().err, given


def large_without_bos() -> PreTrainedTokenizerFast:
    """Byte-level like Qwen's: more than 16 bits of ids, no BOS."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    vocab = {token: i for i, token in enumerate(sorted(alphabet))}
    vocab |= {f"word{i}": len(vocab) + i for i in range(70_000)}
    vocab["Ġmoon"] = len(vocab)
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.add_tokens(["moon"])  # an id beyond 65,535 that the text below has
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>")


def metaspace() -> PreTrainedTokenizerFast:
    """Words behind a metaspace, and BOS, like Llama-2's and Mistral's."""
    words = {"<unk>": 0, "<s>": 1, "</s>": 2} | {w: i + 3 for i, w in enumerate(["▁the", "▁moon", "▁sun", "▁shone."])}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.mark.parametrize(("make_tokenizer", "first"), [(large_without_bos, None), (metaspace, 1)])
def test_books_make_rows_for_any_tokenizer(make_tokenizer: Callable[[], Any], first: int | None, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("the moon the sun shone. " * 2000)
    loaded = SimpleNamespace(tokenizer=make_tokenizer(), name="other")
    train, test = row_sources(loaded, {"text_dir": str(tmp_path)}, 0, needs=NEEDS)  # type: ignore[arg-type]
    rows = [train(256), train(256), test(256)]
    assert all(row.shape == (256,) and row.dtype == torch.int64 for row in rows)
    assert not torch.equal(rows[0], rows[1]) and not torch.equal(rows[0], rows[2])
    assert first is None or all(row[0] == first for row in rows)
    assert first is not None or int(rows[0].max()) > 2**16
    with pytest.raises(UserError, match="too few for rows of 100000"):
        train(100_000)
    with pytest.raises(UserError, match=r"job\.rows=mixture: the tokenizer of other doesn't suit it"):
        row_sources(loaded, {"text_dir": str(tmp_path)}, 0, kind="mixture", needs=NEEDS)  # type: ignore[arg-type]


def test_books_that_measure_recall_are_not_trained_on(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("the sun " * 1900 + "the moon " * 88)  # a twentieth of the bytes, and one
    loaded: Any = SimpleNamespace(tokenizer=metaspace(), name="other")
    train, test = row_sources(loaded, {"text_dir": str(tmp_path)}, 0, kind="books", needs=NEEDS)
    assert not any(4 in train(50) for _ in range(400))  # no moon
    assert all(4 in test(50) for _ in range(20))


def test_a_row_of_samples_has_one_bos(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = SimpleNamespace(prompt="the moon the sun", answers=["the moon"])
    monkeypatch.setattr("harness.training.gates.rows.get_samples", lambda *_, **__: [sample])
    loaded: Any = SimpleNamespace(tokenizer=metaspace(), name="other")
    train, _ = row_sources(loaded, {}, 0, kind="samples", needs=NEEDS)
    assert train(20).tolist() == [1, *([3, 4, 3, 5, 3, 4] * 4)][:20]


def test_short_rows_are_made_of_the_tasks_that_fit(toy_folder: Path) -> None:
    loaded: Any = SimpleNamespace(tokenizer=AutoTokenizer.from_pretrained(toy_folder), name="toy")
    train, test = row_sources(loaded, {}, 0, kind="samples", needs=NEEDS)
    assert train(700).shape == test(700).shape == (700,)


def test_rows_too_short_for_every_task(config: DictConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"job\.lengths: 64 tokens are too few for every task"):
        distill_command.main(changed(config, f"job.out='{tmp_path}'", "job.lengths=[64]", "job.tokens=64"))


@pytest.mark.parametrize(
    ("model", "hint", "folder"),
    [
        (
            {"name": "Llama-3.1-8B-Instruct", "path": "meta-llama/Llama-3.1-8B"},
            "model=hf model.path=meta-llama/Llama-3.1-8B ",
            "gates/meta-llama-Llama-3.1-8B",
        ),
        (
            {"name": "meta-llama/Llama-3.1-8B", "path": "meta-llama/Llama-3.1-8B"},
            "model=hf model.path=meta-llama/Llama-3.1-8B ",
            "gates/meta-llama-Llama-3.1-8B",
        ),
        ({"name": "toy", "path": "toy"}, "model=hf model.path=toy ", "toy"),
        ({"name": "bundled", "path": "bundled"}, "model=bundled ", "package"),
    ],
)
def test_the_hint_trains_where_the_method_looks(
    model: dict[str, str], hint: str, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy").mkdir()
    folders = {"toy": Path("toy"), "bundled": Path("package")}
    loaded = SimpleNamespace(name=model["name"], path=folders.get(model["path"]))
    assert model_overrides(model) == hint
    assert weights_folder(model, loaded) == Path(folder)  # type: ignore[arg-type]


@pytest.mark.usefixtures("blank_pictures")
def test_pictures_name_the_training(command: Command, toy: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    titles: list[str] = []
    monkeypatch.setattr("harness.report.figures.style.set_title", lambda figure, title: titles.append(title))
    short = ["job.steps=1", "job.rows=samples", "job.lengths=[1024]", f"job.out={tmp_path}", "job.recall_sequences=1"]
    assert command(*toy, *JOB, *short, "job.trainings={mass:{pool:mass}}") == 0
    assert len(titles) == 2 and all("gates 32-mass" in title for title in titles)
