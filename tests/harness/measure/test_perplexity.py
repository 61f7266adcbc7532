"""Perplexity: the loss is transformers' own, every token counts once, runs resume, rows pair with dense."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
import torch
from transformers import AutoTokenizer, Gemma3ForCausalLM

from harness.core.errors import UserError
from harness.measure import perplexity
from harness.measure.perplexity import Window, read_texts, windows
from harness.measure.sweep import load_quietly
from harness.models import loss
from harness.models.bridge import Bridge
from harness.models.loading import ModelConfig
from harness.models.loss import check_head, nll
from harness.tasks import documents
from tests.harness.measure import study_files
from tests.harness.tiny import Fixed, load, tokens

Command = Callable[..., int]
WORDS = "The grass is green. The sky is blue. One of the numbers for apple is: "


@pytest.fixture(autouse=True)
def nothing_remembered() -> None:
    """Texts and tokens are held for all jobs of a process, which tests are not."""
    documents.forget()


@pytest.fixture
def books(tmp_path: Path) -> Path:
    """Five documents of the toy tokenizer, one of them short."""
    folder = tmp_path / "books"
    folder.mkdir()
    for n in range(4):
        (folder / f"{n}.txt").write_text(" ".join(f"{WORDS}{(n + 2) * i * 7919 % 99991}." for i in range(60)))
    (folder / "short.txt").write_text(WORDS)
    return folder


@pytest.fixture
def asked(toy: list[str], books: Path) -> list[str]:
    return [*toy, "job=perplexity", f"data.text_dir={books}", "length=256", "samples=3"]


def lines(tmp_path: Path, kind: str) -> list[dict[str, Any]]:
    return study_files.lines(tmp_path / "results" / "toy", kind)


def board(tmp_path: Path) -> list[dict[str, str]]:
    return study_files.board(tmp_path / "results" / "toy")


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3", "mistral_window"])
def test_the_loss_is_that_of_transformers_in_float64(family: str) -> None:
    loaded = load(family, dtype=torch.float64)
    ids = tokens(77, seed=3)
    out = loaded.model(input_ids=ids[None], labels=ids[None])
    logits = out.logits[0].log_softmax(-1)
    loss_sum = -float(logits[:-1].gather(1, ids[1:, None]).sum())
    assert loss_sum == pytest.approx(float(out.loss) * 76, rel=1e-6), "transformers' own loss is rounded to float32"
    check_head(loaded)
    for elements in (1, 97 * 10, 1 << 26):  # a token, ten tokens (76 is no multiple), all at a time
        assert float(nll(loaded, ids, 1, elements=elements)) == pytest.approx(loss_sum, rel=1e-12)
    late = -logits[40:76].gather(1, ids[41:, None]).sum()
    assert float(nll(loaded, ids, 41)) == pytest.approx(float(late), rel=1e-12)


def test_a_method_that_keeps_all_is_dense_and_one_that_does_not_is_not() -> None:
    loaded, ids, losses = load("llama", dtype=torch.float64), tokens(96), {}
    dense = float(nll(loaded, ids, 1))
    for keep in ("all", "none", "ends"):
        with Bridge(loaded, Fixed(keep=keep), sparse_kernel="reference", dense_kernel="reference"):
            losses[keep] = float(nll(loaded, ids, 1))
    assert losses["all"] == pytest.approx(dense, rel=1e-12) and losses["none"] == pytest.approx(dense, rel=1e-12)
    assert abs(losses["ends"] - dense) > 0.1


def test_logits_are_never_all_held(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, rows = load("llama"), []
    loaded.model.lm_head.register_forward_hook(lambda module, given, out: rows.append(out.shape[0]))
    nll(loaded, tokens(50), 1, elements=97 * 8)
    assert rows == [8] * 6 + [1]


def test_a_model_with_capped_logits_is_refused() -> None:
    loaded = load("gemma3")
    config = loaded.model.config
    config.final_logit_softcapping = 2.0
    loaded.model.__class__ = Gemma3ForCausalLM
    with pytest.raises(UserError, match="Gemma3ForCausalLM changes its logits after the output layer"):
        check_head(loaded)


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize(("count", "stride"), [(10, 3), (11, 3), (23, 7), (50, 10), (50, 1), (64, 4)])
def test_every_token_counts_once(count: int, stride: int, bos: bool) -> None:
    spans = windows(count, 10, stride, bos=bos)
    scored = [t for w in spans for t in range(w.first, w.start + 10)]
    assert scored == list(range(0 if bos else 1, count)), "each once, in order"
    assert all(0 <= w.start <= w.first - (not bos) < w.start + 10 <= count for w in spans), "something before it, at least BOS"
    assert spans[-1].start + 10 == count


def test_one_pass_is_one_window() -> None:
    assert windows(99, 10, None, bos=True) == [Window(0, 0)] and windows(10, 10, None, bos=False) == [Window(0, 1)]


@pytest.mark.usefixtures("pictures")
def test_dense_and_method_on_the_same_documents(command: Command, asked: list[str], tmp_path: Path) -> None:
    assert command(*asked) == 0
    records = lines(tmp_path, "perplexity")
    assert len(records) == 6 and {r["tokens"] for r in records} == {255} and {r["read"] for r in records} == {256}
    assert [r["document"] for r in records[:3]] == ["0.txt", "1.txt", "2.txt"]
    rows = {r["method"]: r for r in board(tmp_path)}
    dense, sparse = rows["dense"], rows["block_topk"]
    losses = [r["nll"] for r in records if r["cell"] == sparse["cell"]]
    assert float(sparse["perplexity"]) == pytest.approx(math.exp(sum(losses) / 765), rel=1e-5)
    assert float(sparse["nll"]) == pytest.approx(sum(losses) / 765, rel=1e-5)
    assert sparse["dense_perplexity"] == dense["perplexity"] and dense["perplexity_ratio"] == ""
    ratio = float(sparse["perplexity"]) / float(dense["perplexity"])
    assert float(sparse["perplexity_ratio"]) == pytest.approx(ratio, rel=1e-4)
    assert float(sparse["perplexity_low"]) < float(sparse["perplexity"]) < float(sparse["perplexity_high"])
    assert sparse["haystack"].startswith("books-") and sparse["task"] == "perplexity" and sparse["samples"] == "3"
    assert sparse["accuracy"] == "" and float(sparse["density"]) == pytest.approx(0.5, abs=0.1)
    for column in ("p_value", "tokens_s", "command", "commit", "torch", "device", "kernel", "perplexity_ratio_high"):
        assert sparse[column] != "", column
    assert (tmp_path / "results" / "toy" / "perplexity.png").stat().st_size > 10_000
    assert not (tmp_path / "results" / "toy" / "pareto.png").exists()


def test_sparsity_zero_equals_dense(command: Command, asked: list[str], tmp_path: Path) -> None:
    assert command(*asked, "sparsity=0", "dtype=float64", "kernel=reference", "dense_kernel=reference") == 0
    rows = {r["method"]: r for r in board(tmp_path)}
    by_cell: dict[str, list[float]] = {}
    for record in lines(tmp_path, "perplexity"):
        by_cell.setdefault(record["cell"], []).append(record["nll"])
    assert by_cell[rows["block_topk"]["cell"]] == pytest.approx(by_cell[rows["dense"]["cell"]], rel=1e-12)


def test_the_same_command_does_nothing_twice_and_more_documents_extend(
    command: Command, asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command(*asked, "samples=2", "report=false") == 0
    before = (lines(tmp_path, "perplexity"), lines(tmp_path, "cells"))
    calls: list[int] = []
    real = perplexity.nll

    def counted(*args: Any) -> Any:
        calls.append(1)
        return real(*args)

    monkeypatch.setattr(perplexity, "nll", counted)
    assert command(*asked, "samples=2", "report=false") == 0
    assert not calls and (lines(tmp_path, "perplexity"), lines(tmp_path, "cells")) == before
    assert command(*asked, "samples=99") == 0, "four documents are long enough"
    assert len(calls) == 4 and {r["samples"] for r in board(tmp_path)} == {"4"}


def test_an_error_is_recorded_and_the_next_run_goes_on(
    command: Command, asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = perplexity.nll, []

    def breaks(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 5:  # dense has three documents, the method's second fails
            raise RuntimeError("CUDA out of memory")
        return real(*args)

    monkeypatch.setattr(perplexity, "nll", breaks)
    assert command(*asked) == 1
    (row,) = (r for r in board(tmp_path) if r["method"] == "block_topk")
    assert (row["status"], row["perplexity"]) == ("failed", "") and "out of memory" in row["reason"]
    assert command(*asked) == 0
    assert len(lines(tmp_path, "perplexity")) == 6 and {r["status"] for r in board(tmp_path)} == {"ok"}


def test_windows_of_whole_documents(command: Command, asked: list[str], tmp_path: Path) -> None:
    assert command(*asked, "job.stride=100", "samples=1", "report=false") == 0
    (record, _) = lines(tmp_path, "perplexity")
    (tokenizer,) = {a.partition("=")[2] for a in asked if a.startswith("model.path=")}
    book = (tmp_path / "books" / "0.txt").read_text()
    count = len(AutoTokenizer.from_pretrained(tokenizer)(book)["input_ids"])
    assert count > 512 and record["tokens"] == count - 1
    assert record["read"] == 256 * (1 + math.ceil((count - 256) / 100))
    plain = command(*asked, "samples=1", "report=false")
    assert plain == 0 and len({r["cell"] for r in lines(tmp_path, "perplexity")}) == 4, "one pass is another cell"
    assert command(*asked, "samples=1", "job.min_tokens=400") == 0
    names = {row["haystack"] for row in board(tmp_path)}
    (plain_name,) = (name for name in names if " " not in name)
    assert names == {plain_name, f"{plain_name} from 400 tokens", f"{plain_name} in steps of 100"}


def test_a_loss_that_is_no_number_fails_its_cell(
    command: Command, asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(perplexity, "nll", lambda *_: torch.tensor(math.nan, dtype=torch.float64))
    assert command(*asked, "samples=1") == 1
    assert {r["status"] for r in board(tmp_path)} == {"failed"}
    assert "NaN" in board(tmp_path)[0]["reason"] and board(tmp_path)[0]["perplexity"] == ""


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["job.text=pydoc"], "name one of them"),
        (["decode=quest"], "job=perplexity measures prefill, which decode=quest does not change"),
        (["data.text_dir=nowhere"], "data.text_dir=nowhere: no such folder"),
    ],
)
def test_bad_input(
    command: Command, asked: list[str], capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    assert command(*asked, *arguments) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "length", "says"),
    [
        ({"text": "novels"}, 256, "job.text=novels: must be one of auto, pg19, pydoc"),
        ({"stride": 0}, 256, "job.stride=0: must be null or a whole number of at least 1 and at most 256"),
        ({"stride": 300}, 256, "at most 256"),
        ({"min_tokens": "many"}, 256, "job.min_tokens=many: must be null or a whole number"),
        ({"min_tokens": 100_000}, 256, "no document of 100000 tokens"),
        ({}, 1, "length=1: must be at least 2"),
    ],
)
def test_bad_options(toy_folder: Path, books: Path, options: dict[str, Any], length: int, says: str) -> None:
    loaded = load_quietly(ModelConfig("toy", str(toy_folder), torch.float32, torch.device("cpu")))
    context: Any = SimpleNamespace(loaded=loaded, length=length, sample_count=3, data={"text_dir": str(books)})
    with pytest.raises(UserError, match=re.escape(says)):
        read_texts(context, {"text": "auto", "stride": None, "min_tokens": None} | options)


def test_without_network_the_error_names_the_other_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> Any:
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(UserError, match=r"emozilla/pg19-test: it is not in the cache.*data\.text_dir=FOLDER.*job\.text=pydoc"):
        documents.load_text("auto", None)


def test_pg19_is_read_by_title(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"short_book_title": "A Book", "text": "one"}, {"short_book_title": "", "text": "two"}]
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: rows if (name, split) == (documents.PG19, "test") else 0)
    text = documents.load_text("pg19", None)
    assert text.documents == (("A Book", "one"), ("1", "two")) and text.name.startswith("pg19-test-")


def test_pydoc_is_cut_into_documents_that_share_no_token() -> None:
    tokenizer = AutoTokenizer.from_pretrained(Path(loss.__file__).parents[1] / "bundled")
    text = documents.load_text("pydoc", None)
    three = documents.cut_documents(text, tokenizer, 500, 700, 3, whole=False)
    ids = documents._ids(tokenizer, text.documents[0][1])
    assert [list(d.ids) for d in three] == [list(ids[700 * n : 700 * n + 500]) for n in range(3)]
    assert text.name.startswith("pydoc-3.") and len({d.name for d in three}) == 3


def test_a_cut_document_has_the_tokens_of_the_whole_one(books: Path, toy_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = AutoTokenizer.from_pretrained(toy_folder)
    text = documents.load_text("auto", str(books))
    whole = documents.cut_documents(text, tokenizer, 100, 100, 9, whole=True)
    assert [d.name for d in whole] == ["0.txt", "1.txt", "2.txt", "3.txt"]
    for start in (1, 8, 100):
        monkeypatch.setattr(documents, "CHARACTERS", start)
        documents._last_cut.clear()
        cut = documents.cut_documents(text, tokenizer, 100, 100, 9, whole=False)
        assert [d.ids for d in cut] == [d.ids[:100] for d in whole]


def test_a_text_with_fewer_documents_is_read_once(books: Path, toy_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep asks again for each method: a hundred books take a minute."""
    text, tokenizer = documents.load_text("auto", str(books)), AutoTokenizer.from_pretrained(toy_folder)
    first = documents.cut_documents(text, tokenizer, 100, 100, 9, whole=False)
    monkeypatch.setattr(documents, "_ids", lambda *_: pytest.fail("tokenised again"))
    assert documents.cut_documents(text, tokenizer, 100, 100, 9, whole=False) == first and len(first) == 4
    assert documents.cut_documents(text, tokenizer, 100, 100, 2, whole=False) == first[:2]
