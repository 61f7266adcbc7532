"""Long documents as tokens, for job=perplexity: PG19's test books, a folder of the user's, or CPython's own documentation."""

from __future__ import annotations

import hashlib
import platform
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from harness.core.errors import UserError
from harness.tasks.cache import tokenizer_hash

PG19 = "emozilla/pg19-test"
"""The hub's copy of PG19's test split: a hundred books that SeerAttention's table is of."""
SOURCES = ("auto", "pg19", "pydoc")
CHARACTERS = 8
"""Characters of text that are tokenised at first for every token that is needed."""


@dataclass(frozen=True)
class Text:
    """Documents by name, as text; `name` is what rows call them all. `pieces`: it is one text, cut into documents."""

    name: str
    documents: tuple[tuple[str, str], ...]
    pieces: bool = False


@dataclass(frozen=True)
class Document:
    """A document's name and its token ids, without BOS."""

    name: str
    ids: array[int]


_texts: dict[tuple[str, str | None], Text] = {}
_tokens: dict[tuple[Any, ...], tuple[int, list[Document]]] = {}
"""How many documents were asked for, and those there were."""


def text(source: str, folder: str | None) -> Text:
    """The text that job.text and data.text_dir name, read once. "auto": the folder where there is one, else PG19.

    Raises UserError where it can't be had; nothing stands in for it.
    """
    if source not in SOURCES:
        raise UserError(f"job.text={source}: must be one of {', '.join(SOURCES)}; a folder of .txt files is data.text_dir=")
    if source != "auto" and folder is not None:
        raise UserError(f"job.text={source} and data.text_dir={folder}: name one of them")
    if (source, folder) not in _texts:
        if folder is not None:
            _texts[source, folder] = _from_folder(folder)
        else:
            _texts[source, folder] = _pydoc() if source == "pydoc" else _pg19()
    return _texts[source, folder]


def documents(found: Text, tokenizer: Any, tokens: int, least: int, count: int, *, whole: bool) -> list[Document]:
    """The first `count` documents of at least `least` tokens, cut to `tokens`, or whole. Fewer where there are no more."""
    key = (found.name, tokenizer_hash(tokenizer), tokens, least, whole)
    if _tokens.get(key, (0, []))[0] < count:
        _tokens.clear()  # of another length
        every = _pieces(found, tokenizer, least) if found.pieces and not whole else _cut(found, tokenizer, least, whole)
        cut = [Document(d.name, d.ids if whole else d.ids[:tokens]) for d in islice(every, count)]
        _tokens[key] = count, cut
    return _tokens[key][1][:count]


def _cut(found: Text, tokenizer: Any, least: int, whole: bool) -> Iterator[Document]:
    """Every document that is long enough, as far as it is needed."""
    for name, words in found.documents:
        size = len(words) if whole else CHARACTERS * least
        while len(ids := _ids(tokenizer, words[:size])) <= least and size < len(words):  # the last token may be a part of one
            size *= 2
        if len(ids) >= least:
            yield Document(name, ids)


def _pieces(found: Text, tokenizer: Any, least: int) -> Iterator[Document]:
    """The one text as consecutive documents of `least` tokens."""
    for name, words in found.documents:
        ids = _ids(tokenizer, words)
        for number in range(len(ids) // least):
            yield Document(f"{name} {number}", ids[number * least : (number + 1) * least])


def _ids(tokenizer: Any, words: str) -> array[int]:
    return array("i", tokenizer(words, add_special_tokens=False, verbose=False)["input_ids"])


def _named(stem: str, found: Sequence[tuple[str, str]]) -> Text:
    digest = hashlib.sha256()
    for _, words in found:
        digest.update(words.encode() + b"\0")
    return Text(f"{stem}-{digest.hexdigest()[:8]}", tuple(found))


def _from_folder(folder: str) -> Text:
    root = Path(folder).expanduser()
    paths = sorted(root.rglob("*.txt"))
    if not paths:
        raise UserError(f"data.text_dir={folder}: no .txt file there; name a folder of plain-text books")
    found = [(p.relative_to(root).as_posix(), p.read_text(encoding="utf-8", errors="replace").strip()) for p in paths]
    return _named(root.resolve().name, found)


def _pydoc() -> Text:
    from pydoc_data.topics import topics

    version = ".".join(platform.python_version_tuple()[:2])
    return Text(f"pydoc-{version}", (("pydoc", "\n\n".join(topics[key].strip() for key in sorted(topics))),), pieces=True)


def _pg19() -> Text:
    try:
        from datasets import load_dataset

        rows = load_dataset(PG19, split="test")
    except Exception as error:
        first = str(error).strip().partition("\n")[0]
        raise UserError(
            f"can't load {PG19} from the hub ({first}): give a folder of long .txt files, data.text_dir=FOLDER, or say "
            "job.text=pydoc for CPython's own documentation"
        ) from None
    return _named("pg19-test", [(str(row.get("short_book_title") or n), row["text"]) for n, row in enumerate(rows)])
