"""The documents and questions of RULER's QA tasks, read from SQuAD and HotpotQA as these are distributed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from harness.core.errors import UserError
from harness.core.input_files import parse_json, read_bytes
from harness.tasks.files import DataFile, short_hash

SQUAD = DataFile(
    "SQuAD 2.0's dev set",
    ("squad.json", "dev-v2.0.json"),
    "https://rajpurkar.github.io/SQuAD-explorer/dataset/dev-v2.0.json",
)
HOTPOTQA = DataFile(
    "HotpotQA's dev set with distractors",
    ("hotpotqa.json", "hotpot_dev_distractor_v1.json"),
    # of the two addresses in RULER's download script the one that answers
    "https://huggingface.co/datasets/namlh2004/hotpotqa/resolve/7e54db4656209750ff487f6fdf8e39a66dba136b/"
    "hotpot_dev_distractor_v1.json",
)


@dataclass(frozen=True)
class Question:
    """A question and its answers.

    own: indices of the documents that belong to it, those that answer it (`golden` of them) first. near: indices of those of
    the same article, which are taken before others.
    """

    query: str
    answers: tuple[str, ...]
    own: tuple[int, ...]
    golden: int
    near: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Questions:
    """A file's documents, sorted and each once, and its questions in the file's order; `name` is what rows call it."""

    name: str
    documents: tuple[str, ...]
    questions: tuple[Question, ...]


def read(path: Path) -> Questions:
    """Return the questions of a file, SQuAD or HotpotQA told apart by its content. Raises UserError where it is neither."""
    return _read(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _read(path: Path, _: int) -> Questions:
    data: Any = parse_json(read_bytes(path), path, "; download it again")
    try:
        squad = isinstance(data, dict)
        documents, questions = _squad(data["data"]) if squad else _hotpotqa(data)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        why = f"{type(error).__name__}: {error}"
        raise UserError(f"{path}: neither SQuAD 2.0's JSON nor HotpotQA's ({why}); download it again") from None
    for question in questions:
        if not question.answers or not all(isinstance(answer, str) and answer.strip() for answer in question.answers):
            raise UserError(f"{path}: a question has no answer, or a blank one ({question.query[:60]!r}); download it again")
    if not questions:
        raise UserError(f"{path}: no question that has an answer; download it again")
    return Questions(f"{'squad' if squad else 'hotpotqa'}-{short_hash(path)}", documents, questions)


def _squad(articles: Sequence[Any]) -> tuple[tuple[str, ...], tuple[Question, ...]]:
    documents, index = _indexed(p["context"] for a in articles for p in a["paragraphs"])
    questions = []
    for article in articles:
        members = [index(p["context"]) for p in article["paragraphs"]]
        for paragraph in article["paragraphs"]:
            own = index(paragraph["context"])
            near = tuple(dict.fromkeys(i for i in members if i != own))
            questions += [
                Question(qa["question"], tuple(dict.fromkeys(a["text"] for a in qa["answers"])), (own,), 1, near)
                for qa in paragraph["qas"]
                if not qa["is_impossible"]
            ]
    return documents, tuple(questions)


def _hotpotqa(rows: Sequence[Any]) -> tuple[tuple[str, ...], tuple[Question, ...]]:
    def text(title: str, sentences: Sequence[str]) -> str:
        return f"{title}\n{''.join(sentences)}"

    documents, index = _indexed(text(*pair) for row in rows for pair in row["context"])
    questions = []
    for row in rows:
        supporting = {title for title, _ in row["supporting_facts"]}
        golden = [index(text(*pair)) for pair in row["context"] if pair[0] in supporting]
        others = [index(text(*pair)) for pair in row["context"] if pair[0] not in supporting]
        questions.append(Question(row["question"], (row["answer"],), (*golden, *others), len(golden)))
    return documents, tuple(questions)


def _indexed(texts: Any) -> tuple[tuple[str, ...], Callable[[str], int]]:
    """Return the texts, sorted and each once, and what gives the place of one."""
    documents = tuple(sorted(set(texts)))
    places = {document: place for place, document in enumerate(documents)}
    return documents, places.__getitem__
