"""RULER's QA tasks: read as distributed, the answering documents always there, NVIDIA's score, errors that name the file."""

from __future__ import annotations

import http.client
import io
import json
import random
import re
import urllib.error
import urllib.request
import urllib.response
from collections.abc import Callable
from dataclasses import replace
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from harness.core.errors import UserError
from harness.report.leaderboard import leaderboard_rows
from harness.study.store import Store
from harness.tasks import files, registry
from harness.tasks.checks import check_sample
from harness.tasks.haystack import haystack_source
from harness.tasks.ruler import qa, question_sets
from harness.tasks.ruler.names import QUESTION_ANSWERING
from harness.tasks.ruler.samples import get_samples
from harness.tasks.ruler.scoring import string_match_part
from harness.tasks.ruler.word_counts import CommonWords

BUNDLED = Path(__file__).resolve().parents[3] / "harness" / "bundled"
Command = Callable[..., int]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(BUNDLED)


def paragraph(article: str, number: int) -> dict[str, Any]:
    context = f"The {article} of place {number} speak of river {number}. " * 3
    answers = [{"text": f"river {number}", "answer_start": 0}, {"text": f"of river {number}", "answer_start": 0}]
    asked = {"question": f"What do {article} {number} speak of?", "id": "x", "answers": answers, "is_impossible": False}
    return {"context": context, "qas": [asked, {**asked, "answers": [], "is_impossible": True}]}


def hotpot_row(number: int) -> dict[str, Any]:
    pages = [[f"Page {number}-{n}", [f"Page {n} of {number} is long.", " It has words."]] for n in range(10)]
    return {
        "_id": str(number),
        "question": f"Is page {number} long?",
        "answer": "yes",
        "type": "comparison",
        "level": "hard",
        "supporting_facts": [[f"Page {number}-7", 0], [f"Page {number}-2", 1], [f"Page {number}-2", 0]],
        "context": pages,
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data_folder = tmp_path_factory.mktemp("data")
    articles = [{"title": a, "paragraphs": [paragraph(a, n) for n in range(9)]} for a in ("Normans", "Saxons", "Franks")]
    (data_folder / "dev-v2.0.json").write_text(json.dumps({"version": "v2.0", "data": articles}))
    (data_folder / "hotpotqa.json").write_text(json.dumps([hotpot_row(n) for n in range(12)]))
    return data_folder


def documents(prompt: str) -> list[str]:
    body = prompt.partition("given documents.\n\nThe following are given documents.\n\n")
    context = prompt.partition("The following are given documents.\n\n")[2].rpartition("\n\nAnswer the question")[0]
    assert body
    parts = re.split(r"(?:^|\n\n)Document (\d+):\n", context)[1:]
    assert parts[::2] == [str(n + 1) for n in range(len(parts) // 2)], "numbered from 1, in order"
    return parts[1::2]


def test_the_prompt_is_rulers(tokenizer, folder: Path) -> None:
    (sample,) = get_samples("qa_1", tokenizer, 1024, 1, folder=str(folder))
    rule = "Answer the question based on the given documents. Only give me the answer and do not output any other words."
    assert sample.prompt.startswith(f"{rule}\n\nThe following are given documents.\n\nDocument 1:\n")
    assert sample.prompt.endswith(f"\n\n{rule}\n\nQuestion: What do Normans 0 speak of? Answer:")
    assert (sample.max_new_tokens, sample.answers) == (32, ("river 0", "of river 0"))
    assert sample.haystack == f"squad-{files.short_hash(folder / 'dev-v2.0.json')}"


@pytest.mark.parametrize("name", QUESTION_ANSWERING)
@pytest.mark.parametrize("length", [512, 1024, 2048])
def test_what_answers_the_question_is_always_there(tokenizer, folder: Path, name: str, length: int) -> None:
    samples = get_samples(name, tokenizer, length, 12, folder=str(folder))
    for sample in samples:
        assert check_sample(sample, tokenizer) is None
        assert sample.tokens + sample.max_new_tokens <= length
        shown = documents(sample.prompt)
        assert sample.evidence and set(sample.evidence) <= set(shown)
    places = {documents(sample.prompt).index(sample.evidence[0]) for sample in samples}
    assert len(places) > 2, "shuffled among the others"


def test_documents_of_the_article_come_before_others(folder: Path) -> None:
    data = question_sets.read(folder / "dev-v2.0.json")
    assert len(data.documents) == 27 and len(data.questions) == 27, "impossible questions are left out"
    question = data.questions[10]
    assert data.documents[question.own[0]].startswith("The Saxons of place 1 ") and len(question.near) == 8
    builder = qa.OneQuestion(data, question)
    for size, others in ((5, 0), (9, 0), (14, 5)):
        text, _, answers = builder.build(random.Random(0), size)
        shown = documents(text)
        assert len(shown) == size and len(set(shown)) == size and builder.evidence[0] in shown
        assert sum("Saxons" not in document for document in shown) == others
        assert answers == ["river 1", "of river 1"]


def test_the_ten_documents_of_a_hotpot_question_are_all_there_where_they_fit(folder: Path) -> None:
    data = question_sets.read(folder / "hotpotqa.json")
    builder = qa.OneQuestion(data, data.questions[3])
    assert builder.evidence == (
        "Page 3-2\nPage 2 of 3 is long. It has words.",
        "Page 3-7\nPage 7 of 3 is long. It has words.",
    )
    for size, own in ((1, 2), (4, 4), (10, 10), (17, 10)):
        shown = documents(builder.build(random.Random(1), size)[0])
        assert sum(document.startswith("Page 3-") for document in shown) == own
        assert len(shown) == max(size, 2) and set(builder.evidence) <= set(shown)
    assert documents(builder.build(random.Random(1), 250)[0]).count(builder.evidence[0]) in (2, 3), "120 documents start over"
    assert data.documents[0] in documents(builder.build(random.Random(1), 120)[0])
    assert data == question_sets.read(folder / "hotpotqa.json"), "shuffling leaves the documents as they were"


def test_questions_are_asked_in_the_order_of_the_file_and_other_seeds_ask_others(tokenizer, folder: Path) -> None:
    asked = [s.prompt.rpartition("Question: ")[2] for s in get_samples("qa_1", tokenizer, 512, 3, folder=str(folder))]
    assert asked == [f"What do Normans {n} speak of? Answer:" for n in range(3)]
    data = question_sets.read(folder / "dev-v2.0.json")
    builder = qa.DocumentQA(data)
    assert builder.question(1, 0) is data.questions[500 % 27] and builder.question(0, "sizing") is data.questions[0]
    with pytest.raises(UserError, match=r"samples=28: squad-\w+ has 27 questions; choose samples=27 or less"):
        builder.question(0, 27)
    few = get_samples("qa_2", tokenizer, 1024, 2, folder=str(folder))
    assert get_samples("qa_2", tokenizer, 1024, 5, folder=str(folder))[:2] == few


def test_scored_by_any_reference_as_nvidia_does() -> None:
    assert string_match_part("It is FRANCE.", ["in France", "France"]) == 1.0
    assert string_match_part("Spain", ["in France", "France"]) == 0.0
    assert [registry.get(name).metric("France", ("in France", "France")) for name in ("qa_1", "qa_2", "vt")] == [1.0, 1.0, 0.5]


def test_a_missing_answering_document_is_found(tokenizer, folder: Path) -> None:
    (sample,) = get_samples("qa_2", tokenizer, 1024, 1, folder=str(folder))
    assert sample.answers == ("yes",) and check_sample(sample, tokenizer) is None, "an answer need not be quoted"
    cut = replace(sample, prompt=sample.prompt.replace(sample.evidence[1], ""))
    assert "the document 'Page 0-7" in str(check_sample(cut, tokenizer))


def test_too_short_is_an_error_and_no_endless_search(tokenizer, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"length=100 is too short for qa_2: the smallest that works here is \d+"):
        get_samples("qa_2", tokenizer, 100, 1, folder=str(folder))
    rows = [hotpot_row(n) for n in range(3)]
    rows[2]["context"][7][1] = ["word " * 900]
    (tmp_path / "hotpotqa.json").write_text(json.dumps(rows))
    with pytest.raises(UserError, match=r"length=512 is too short for qa_2: sample 2 needs \d+"):
        get_samples("qa_2", tokenizer, 512, 3, folder=str(tmp_path))


def test_samples_are_kept_and_belong_to_their_file(tokenizer, folder: Path, tmp_path: Path) -> None:
    ask = {"tokenizer": tokenizer, "length": 1024, "n": 2, "cache_dir": tmp_path / "cache"}
    first = get_samples("qa_2", folder=str(folder), **ask)
    assert get_samples("qa_2", folder=str(folder), **ask) == first, "read back with their evidence"
    other = tmp_path / "other"
    other.mkdir()
    (other / "hotpot_dev_distractor_v1.json").write_text(json.dumps([hotpot_row(n) for n in range(20, 32)]))
    assert get_samples("qa_2", folder=str(other), **ask)[0].evidence != first[0].evidence
    assert len(list((tmp_path / "cache").glob("*.jsonl"))) == 2
    names = [registry.get("qa_2").files({"dir": str(f)})["hotpotqa.json"] for f in (folder, other)]
    assert names[0] != names[1] and registry.get("vt").files({"dir": str(folder)}) == {}


def test_errors_name_the_file_and_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"data.dir=.* has no squad.json or dev-v2.0.json: get it from https://rajpurkar"):
        registry.get("qa_1").files({"dir": str(tmp_path)})
    with pytest.raises(UserError, match="no such folder"):
        registry.get("qa_1").files({"dir": str(tmp_path / "nothing")})
    for text in ("[1]", "{}", '{"data": []}', '{"data": [1]}', "5", "no JSON", "[" * 9999):
        (tmp_path / "squad.json").write_text(text)
        wrong = r"neither SQuAD 2.0's JSON nor|no question that has an answer|no JSON|JSON that is nested too deeply"
        with pytest.raises(UserError, match=rf"squad.json: ({wrong})"):
            registry.get("qa_1").files({"dir": str(tmp_path)})

    def offline(*_: Any, **__: Any) -> Any:
        raise urllib.error.URLError("no network")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(urllib.request, "urlopen", offline)
    with pytest.raises(UserError, match=r"qa_2 needs HotpotQA.* can't be read \(.*no network.*data.dir=FOLDER"):
        registry.get("qa_2").files({})
    assert not list((tmp_path / ".cache" / "data").iterdir()), "no half of a file stays"


def test_a_download_is_made_once(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    calls: list[str] = []

    def served(url: str, **_: Any) -> Any:
        calls.append(url)
        return answer((folder / "dev-v2.0.json").read_bytes(), url)

    monkeypatch.setattr(urllib.request, "urlopen", served)
    names = {registry.get("qa_1").files({})["squad.json"] for _ in range(2)}
    assert calls == [question_sets.SQUAD.url] and names == {registry.get("qa_1").files({"dir": str(folder)})["squad.json"]}


def answer(body: bytes, url: str, **headers: str) -> Any:
    """What urlopen returns."""
    message = Message()
    for name, value in headers.items():
        message[name] = value
    return urllib.response.addinfourl(io.BytesIO(body), message, url)


def test_a_download_that_ends_early_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def short(url: str, **_: Any) -> Any:
        return answer(b"[]", url, **{"Content-Length": "1000"})

    def broken(*_: Any, **__: Any) -> Any:
        raise http.client.IncompleteRead(b"")

    for served, why in ((short, "2 bytes of 1000 came"), (broken, "IncompleteRead")):
        monkeypatch.setattr(urllib.request, "urlopen", served)
        with pytest.raises(UserError, match=rf"qa_2 needs HotpotQA.* can't be read \({why}"):
            registry.get("qa_2").files({})
        assert not list((tmp_path / ".cache" / "data").iterdir())


def test_rulers_own_files_in_the_folder_are_used(tokenizer, tmp_path: Path) -> None:
    assert haystack_source({"dir": str(tmp_path)}) is None and haystack_source({"haystack": "hub"}) == "hub"
    (tmp_path / "PaulGrahamEssays.json").write_text(json.dumps({"text": "An essay of words. " * 60}))
    assert haystack_source({"dir": str(tmp_path)}) == str(tmp_path / "PaulGrahamEssays.json")
    assert haystack_source({"dir": str(tmp_path), "haystack": "pydoc"}) == "pydoc"
    (tmp_path / "english_words.json").write_text(json.dumps({str(n): f"zz{n}" for n in range(20000)}))
    assert set(registry.get("cwe").files({"dir": str(tmp_path)})) == {"english_words.json"}
    without = get_samples("cwe", tokenizer, 4096, 1)
    assert get_samples("cwe", tokenizer, 4096, 1, folder=str(tmp_path)) == without, "wonderwords are enough"
    builder = CommonWords(more_words=tuple(f"zz{n}" for n in range(20000)))
    assert builder.most == 20000 and builder.build(random.Random(0), 9000)[2][0].startswith("zz")
    assert not builder.build(random.Random(0), 300)[2][0].startswith("zz")


def test_cells_of_other_documents_are_other_cells(command: Command, toy: list[str], folder: Path, tmp_path: Path) -> None:
    arguments = [*toy, f"data.dir={folder}", "task.tasks=[qa_1,qa_2,fwe]", "samples=1", "report=false"]
    assert command(*arguments) == 0
    records = tmp_path / "results" / "toy" / "records"
    cells = [json.loads(line) for line in (records / "cells.jsonl").read_text().splitlines()]
    read = {c["identity"]["task"]: c["identity"].get("files") for c in cells}
    names = {name: next(iter(registry.get(name).files({"dir": str(folder)}).values())) for name in QUESTION_ANSWERING}
    assert read == {"fwe": None, "qa_1": {"squad.json": names["qa_1"]}, "qa_2": {"hotpotqa.json": names["qa_2"]}}
    averages = [r for r in leaderboard_rows(Store(records.parent)) if r.task == "avg"]
    assert [(r.method, r.tasks, r.status) for r in averages] == [("dense", 3, "ok"), ("block_topk", 3, "ok")]
    assert averages[0].haystack == f"{names['qa_2']}+{names['qa_1']}+synthetic"
    other = tmp_path / "other"
    other.mkdir()
    (other / "hotpotqa.json").write_text(json.dumps([hotpot_row(n) for n in range(20, 32)]))
    assert command(*arguments, "task.tasks=[qa_2]", f"data.dir={other}") == 0
    averages = [r for r in leaderboard_rows(Store(records.parent)) if r.task == "avg"]
    assert {(r.status, r.score) for r in averages} == {("failed", None)} and "qa_2 from several" in averages[0].reason
    assert command(*toy, "task=qa_2", f"data.dir={tmp_path}") == 2, "one line before anything runs"
