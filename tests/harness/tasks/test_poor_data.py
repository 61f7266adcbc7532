"""Data files that hold nothing, or too little: one line that says so, and nothing stands in for them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from harness.core.errors import UserError
from harness.models.source import BUNDLED
from harness.tasks.haystack import load_haystack
from harness.tasks.ruler import question_sets
from harness.tasks.ruler.samples import check_words, data_files, get_samples
from harness.training.bundled_model.corpus import read_texts

Command = Callable[..., int]
MANY = " ".join(f"word{i}" for i in range(39))


@pytest.mark.parametrize(
    ("name", "text", "length", "message"),
    [
        ("words.txt", "", 2048, "it has no words, and lists of length=2048 need 20 different ones at least"),
        ("words.txt", " \n\t ", 2048, "it has no words"),
        ("words.txt", "alpha " * 500, 2048, "it has 1 different word, and"),
        ("words.txt", MANY, 4096, "it has 39 different words, and lists of length=4096 need 40"),
        ("words.json", json.dumps({str(i): f"w{i}" if i else " " for i in range(99)}), 2048, "one of its words is blank"),
    ],
)
@pytest.mark.parametrize("task", ["cwe", "vt"])
def test_words(tmp_path: Path, task: str, name: str, text: str, length: int, message: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    (tmp_path / "english_words.json").write_text(json.dumps({str(i): f"long{i}" for i in range(999)}))  # no stand-in either
    with pytest.raises(UserError, match=message) as caught:
        get_samples(task, None, length, 1, words=str(path), folder=str(tmp_path))
    assert f"data.words={path}" in str(caught.value)


def test_few_words_are_enough_for_short_lists_and_rows_say_whose_they_are(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text(MANY)
    check_words(str(path), 4095)
    (sample,) = get_samples("cwe", AutoTokenizer.from_pretrained(BUNDLED), 4095, 1, words=str(path))
    assert sample.haystack == "words-capped" and set(sample.answers) <= set(MANY.split())


def test_an_empty_list_of_words_stops_the_command(
    command: Command, toy: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "words.txt").write_text("")
    assert command(*toy, "task=[niah_single_1,cwe]", "data.words=words.txt") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "data.words=words.txt: it has no words" in line
    assert not list(tmp_path.rglob("samples.jsonl"))


def test_other_files(tmp_path: Path) -> None:
    (tmp_path / "english_words.json").write_text("{}")
    with pytest.raises(UserError, match=r"english_words\.json: holds no words"):
        data_files("cwe", str(tmp_path))
    for text, words in (("", 0), (" \n ", 0), ("one", 1)):
        (tmp_path / "haystack.txt").write_text(text)
        with pytest.raises(UserError, match=f"has {words} words; give at least 100"):
            load_haystack(str(tmp_path / "haystack.txt"))
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "a.txt").write_text(" \n")
    with pytest.raises(UserError, match=r"no \.txt file there has any text"):
        read_texts(tmp_path / "books")


@pytest.mark.parametrize("answers", [[], [""], ["yes", " "]])
def test_a_question_without_an_answer_is_refused(tmp_path: Path, answers: list[str]) -> None:
    """A blank answer is in every prediction: its samples would all count as right."""
    qas = [{"question": "Which?", "is_impossible": False, "answers": [{"text": text} for text in answers]}]
    path = tmp_path / "squad.json"
    path.write_text(json.dumps({"data": [{"paragraphs": [{"context": "Some text.", "qas": qas}]}]}))
    with pytest.raises(UserError, match=r"squad\.json: a question has no answer, or a blank one \('Which\?'\)"):
        question_sets.read(path)
