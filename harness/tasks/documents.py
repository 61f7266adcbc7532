"""Long documents as tokens, for job=perplexity: PG19's test books, a folder of the user's, or CPython's own documentation."""

from __future__ import annotations

import hashlib
import platform
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from harness.core.errors import UserError
from harness.core.hub import find_hub, hub_error
from harness.core.input_files import read_text, text_files
from harness.tasks.tokenizer_hash import tokenizer_hash

PG19 = "emozilla/pg19-test"
"""The hub's copy of PG19's test split: a hundred books that SeerAttention's table is of."""
SOURCES = ("auto", "pg19", "pydoc")
CHARACTERS = 8
"""Characters of text that are tokenised at first for every token that is needed."""


@dataclass(frozen=True)
class Text:
    """Documents by name, as text; `name` is what rows call them all. pieces: it is one text, cut into documents."""

    name: str
    documents: tuple[tuple[str, str], ...]
    pieces: bool = False


@dataclass(frozen=True)
class Document:
    """A document's name and its token ids, without BOS."""

    name: str
    ids: array[int]


_last_cut: dict[tuple[Any, ...], tuple[int, list[Document]]] = {}
"""How many documents of a text were asked for last, and those there were: a sweep asks for the same ones again."""


def load_text(source: str, folder: str | None) -> Text:
    """Return the text that job.text and data.text_dir name, read once. "auto": the folder where there is one, else PG19.

    Raises UserError where it can't be had; nothing stands in for it.
    """
    if source not in SOURCES:
        raise UserError(f"job.text={source}: must be one of {', '.join(SOURCES)}; a folder of .txt files is data.text_dir=")
    if source != "auto" and folder is not None:
        raise UserError(f"job.text={source} and data.text_dir={folder}: name one of them")
    if folder is not None:
        return _from_folder(folder)
    return _pydoc() if source == "pydoc" else _pg19()


def forget() -> None:
    """Drop the texts and tokens in memory."""
    _last_cut.clear()
    for reader in (_from_folder, _pydoc, _pg19):
        reader.cache_clear()


def cut_documents(text: Text, tokenizer: Any, tokens: int, least: int, count: int, *, whole: bool) -> list[Document]:
    """Return the first `count` documents of at least `least` tokens, cut to `tokens`, or whole; fewer if there are."""
    key = (text.name, tokenizer_hash(tokenizer), tokens, least, whole)
    if _last_cut.get(key, (0, []))[0] < count:
        _last_cut.clear()  # of another length
        documents = (
            _pieces(text, tokenizer, least) if text.pieces and not whole else _long_enough(text, tokenizer, least, whole)
        )
        cut = [Document(d.name, d.ids if whole else d.ids[:tokens]) for d in islice(documents, count)]
        _last_cut[key] = count, cut
    return _last_cut[key][1][:count]


def _long_enough(text: Text, tokenizer: Any, least: int, whole: bool) -> Iterator[Document]:
    """Yield every document that is long enough, tokenised as far as it is needed."""
    for name, words in text.documents:
        size = len(words) if whole else CHARACTERS * least
        while len(ids := _ids(tokenizer, words[:size])) <= least and size < len(words):  # the last token may be a part of one
            size *= 2
        if len(ids) >= least:
            yield Document(name, ids)


def _pieces(text: Text, tokenizer: Any, least: int) -> Iterator[Document]:
    """Yield the one text as consecutive documents of `least` tokens."""
    for name, words in text.documents:
        ids = _ids(tokenizer, words)
        for number in range(len(ids) // least):
            yield Document(f"{name} {number}", ids[number * least : (number + 1) * least])


def _ids(tokenizer: Any, words: str) -> array[int]:
    return array("i", tokenizer(words, add_special_tokens=False, verbose=False)["input_ids"])


def _named(stem: str, documents: Sequence[tuple[str, str]]) -> Text:
    digest = hashlib.sha256()
    for _, words in documents:
        digest.update(words.encode() + b"\0")
    return Text(f"{stem}-{digest.hexdigest()[:8]}", tuple(documents))


@lru_cache(maxsize=2)
def _from_folder(folder: str) -> Text:
    root = Path(folder).expanduser()
    paths = text_files("data.text_dir", folder, "name a folder of plain-text books")
    books = [(path.relative_to(root).as_posix(), read_text(path).strip()) for path in paths]
    return _named(root.resolve().name, books)


@lru_cache(maxsize=1)
def _pydoc() -> Text:
    from pydoc_data.topics import topics

    version = ".".join(platform.python_version_tuple()[:2])
    return Text(f"pydoc-{version}", (("pydoc", "\n\n".join(topics[key].strip() for key in sorted(topics))),), pieces=True)


@lru_cache(maxsize=1)
def _pg19() -> Text:
    offline = find_hub()
    try:
        from datasets import load_dataset

        rows = load_dataset(PG19, split="test")
    except Exception as error:
        raise UserError(
            f"can't load the data set {PG19}: {hub_error(error, offline)}; give a folder of long .txt files, "
            "data.text_dir=FOLDER, or say job.text=pydoc for CPython's own documentation"
        ) from None
    return _named("pg19-test", [(str(row.get("short_book_title") or n), row["text"]) for n, row in enumerate(rows)])
