"""Samples on disk: one JSON-lines file for all samples of one task, length, seed, prose and tokenizer."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from harness.tasks.sample import Sample

VERSION = 1
"""Raised when the generator changes what it makes; part of every cache file's name and of every cell's identity."""
log = logging.getLogger(__name__)
_hashes: WeakKeyDictionary[Any, tuple[int, str]] = WeakKeyDictionary()
"""The hash of each tokenizer, and how many tokens it had then."""


def tokenizer_hash(tokenizer: Any) -> str:
    """sha256 (12 digits) of the tokenizer's whole definition. Taken once for each tokenizer, and anew where tokens were added:
    writing out a large vocabulary takes half a second, and every task of every arm asks."""
    tokens, found = _hashes.get(tokenizer, (-1, ""))
    if tokens != len(tokenizer):
        backend = getattr(tokenizer, "backend_tokenizer", None)
        definition = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
        found = hashlib.sha256(definition.encode()).hexdigest()[:12]
        _hashes[tokenizer] = len(tokenizer), found
    return found


def template_hash(tokenizer: Any) -> str:
    """sha256 (12 digits) of the chat template's text: two models may share a tokenizer and not its template."""
    template = getattr(tokenizer, "chat_template", None)
    return hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()[:12]


def cache_file(folder: Path, *key: object) -> Path:
    """The file of the samples that `key` determines."""
    task, length, *rest = key
    digest = hashlib.sha256(json.dumps([VERSION, *map(str, rest)]).encode()).hexdigest()[:12]
    return folder / f"{task}-{length}-{digest}.jsonl"


def read(path: Path) -> dict[int, Sample]:
    """The samples of a cache file by index; a line that can't be read is left out with a notice, and made again."""
    found: dict[int, Sample] = {}
    if not path.is_file():
        return found
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            texts = {name: tuple(row[name]) for name in ("answers", "classes", "evidence") if name in row}
            sample = Sample(**(row | texts))
            found[sample.index] = sample
        except (ValueError, TypeError, KeyError):
            log.warning("%s:%d is damaged; that sample is made again", path, number)
    return found


def write(path: Path, samples: dict[int, Sample]) -> None:
    """Replace the file in one step: a reader sees all of it or the old one. Where the context ends is read off the prompt, and
    not kept: files are the same as before anybody asked for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    rows = [asdict(samples[i]) for i in sorted(samples)]
    lines = [json.dumps({k: v for k, v in row.items() if k != "context"}, ensure_ascii=False) for row in rows]
    temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    os.replace(temporary, path)
