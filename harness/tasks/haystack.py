"""Prose for the essay-type tasks: CPython's own documentation topics, a file of the user's, or the essays of the hub."""

from __future__ import annotations

import hashlib
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from harness.core.errors import UserError
from harness.core.hub import find_hub, hub_error
from harness.core.input_files import input_file, parse_json, read_bytes
from harness.tasks.files import find

SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
"""Where sentences are cut. RULER uses NLTK's punkt; a needle only has to stand between two sentences."""
ESSAYS = ("PaulGrahamEssays.json",)
"""RULER's essays, in the folder of data.dir."""
ESSAYS_FORMAT = '; a JSON file must be {"text": "…"}, as RULER distributes its essays'


@dataclass(frozen=True)
class Haystack:
    """The words of the prose; `name` is what rows call it."""

    name: str
    words: tuple[str, ...]

    def text(self, count: int) -> str:
        """Return the first `count` words, the prose starting over when it is used up."""
        repeats, remainder = divmod(count, len(self.words))
        return " ".join(self.words * repeats + self.words[:remainder])


def sentences(text: str) -> list[str]:
    """Return `text` cut after full stops, question and exclamation marks that a space follows."""
    return SENTENCE_END.split(text.strip())


def haystack_source(data: Mapping[str, Any]) -> str | None:
    """Return the prose that the `data` group names: data.haystack, else RULER's essays in data.dir, else None."""
    if data.get("haystack") is None and data.get("dir") is not None:
        essays = find(ESSAYS, str(data["dir"]))
        return None if essays is None else str(essays)
    return data.get("haystack")


@lru_cache(maxsize=8)
def load_haystack(source: str | None) -> Haystack:
    """Return the prose of a source.

    None or "pydoc": pydoc_data.topics, which every CPython has (its text differs between versions, so the name says which).
    "hub": baber/paul_graham_essays. Else a file: plain text, or RULER's PaulGrahamEssays.json. Raises UserError where it can't
    be read or has fewer than a hundred words. A file's name has a hash of its bytes: it is the user's, or as RULER has it.
    """
    if source in (None, "pydoc"):
        from pydoc_data.topics import topics

        version = ".".join(platform.python_version_tuple()[:2])
        return _named(f"pydoc-{version}", " ".join(topics[key] for key in sorted(topics)))
    if source == "hub":
        return _named("paul_graham_essays", _from_hub())
    path = input_file("data.haystack", str(source), "give a text file, RULER's PaulGrahamEssays.json, pydoc or hub")
    raw = read_bytes(path)
    text = raw.decode("utf-8", errors="replace")
    if path.suffix == ".json":
        essays = parse_json(text, f"data.haystack={source}", ESSAYS_FORMAT)
        if not isinstance(essays, dict) or not isinstance(essays.get("text"), str):
            raise UserError(f"data.haystack={source}: no text in it{ESSAYS_FORMAT}")
        text = essays["text"]
    return _named(f"{path.stem}-{hashlib.sha256(raw).hexdigest()[:8]}", text)


def _named(name: str, text: str) -> Haystack:
    words = tuple(re.sub(r"\s+", " ", text).strip().split(" ")) if text.strip() else ()
    if len(words) < 100:
        raise UserError(f"haystack {name} has {len(words)} words; give at least 100")
    return Haystack(name, words)


def _from_hub() -> str:
    offline = find_hub()
    try:
        from datasets import load_dataset

        essays = load_dataset("baber/paul_graham_essays", split="train")
    except Exception as error:
        why = hub_error(error, offline)
        raise UserError(f"data.haystack=hub: can't load baber/paul_graham_essays: {why}; name a text file instead") from None
    return " ".join(row["text"] for row in essays)
