"""Samples on disk: one JSON-lines file for all samples of one task, length, seed, prose and tokenizer."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict
from pathlib import Path

import msgspec

from harness.core.files import write_atomically
from harness.tasks.sample import Sample

FOLDER = Path(".cache/samples")
"""Where samples are stored, below the working folder."""
log = logging.getLogger(__name__)


def cache_file(folder: Path, task: str, length: int, version: int, *determinants: object) -> Path:
    """Return the path of the samples of a task and length that the version of its generator and `determinants` (seed, prose,
    tokenizer, …) determine."""
    digest = hashlib.sha256(json.dumps([version, *map(str, determinants)]).encode()).hexdigest()[:12]
    return folder / f"{task}-{length}-{digest}.jsonl"


def read(path: Path) -> dict[int, Sample]:
    """Return the samples of a cache file by index; a damaged line is left out with a warning, and built again."""
    samples: dict[int, Sample] = {}
    if not path.is_file():
        return samples
    for number, line in enumerate(path.read_bytes().splitlines(), 1):  # of text, prose could hold separators of lines
        try:
            sample = msgspec.json.decode(line, type=Sample)
            samples[sample.index] = sample
        except (msgspec.DecodeError, RecursionError):
            log.warning("%s:%d is damaged; that sample is made again", path, number)
    return samples


def write(path: Path, samples: dict[int, Sample]) -> None:
    """Replace the file whole or not at all.

    Where the context ends is read off the prompt, and not stored, nor are turns where there is one: files are the same as
    before anybody asked for either.
    """
    rows = [asdict(samples[i]) for i in sorted(samples)]
    stored = [{k: v for k, v in row.items() if k != "context" and (k, v) != ("turns", 1)} for row in rows]
    lines = [json.dumps(row, ensure_ascii=False) for row in stored]
    write_atomically(path, lambda file: file.write("".join(f"{line}\n" for line in lines).encode()))
