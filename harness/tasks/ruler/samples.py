"""RULER's samples at a length: generated, or read back from the cache on disk."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from harness.core.errors import UserError
from harness.core.input_files import input_file, parse_json, read_bytes
from harness.core.sizing import FULL
from harness.tasks import cache, files
from harness.tasks.haystack import load_haystack
from harness.tasks.names import check_name
from harness.tasks.ruler import builders, question_sets
from harness.tasks.ruler.release_sizing import ReleaseSizer
from harness.tasks.ruler.sizing import Sizer
from harness.tasks.ruler.versions import version
from harness.tasks.ruler.word_counts import least_words
from harness.tasks.sample import Sample
from harness.tasks.tokenizer_hash import template_hash, tokenizer_hash

WORDS_FORMAT = "a file of words is UTF-8 text, or JSON such as RULER's english_words.json, whose values are the words"


def get_samples(
    task: str,
    tokenizer: Any,
    length: int,
    n: int,
    *,
    seed: int = 0,
    haystack: str | None = None,
    words: str | None = None,
    folder: str | None = None,
    cache_dir: Path | None = None,
    chat_template: bool = False,
    sizing: str = FULL,
) -> list[Sample]:
    """Return the first `n` samples of `task` at `length` tokens, prompt and answer together.

    sizing: how long prompts are, see `harness.core.sizing`.

    Sample i depends on (seed, task, length, i), the prose, the files and the tokenizer, and on nothing else. With `cache_dir`
    samples are stored on disk, and only those not there yet are built. `folder` has the files of those tasks that read any (see
    `data_files`); None: they are downloaded once. Raises UserError for an unknown task, a length too short for it, or a file
    that isn't there.
    """
    check_name(task)
    own_words, words_hash = read_words(words)
    if words is not None:
        check_words(words, length)
    data_file = builders.DOCUMENTS.get(task)
    questions = None if data_file is None else question_sets.read(files.locate(data_file, folder, task))
    long_list = _long_word_list(task, folder)
    more_words = None if long_list is None else read_words(str(long_list))[0]
    builder = builders.make_builder(task, length, own_words, more_words=more_words, questions=questions)
    prose = load_haystack(haystack) if builder.needs_prose else None
    path = None
    samples: dict[int, Sample] = {}
    if cache_dir is not None:
        template = template_hash(tokenizer) if chat_template else False
        determinants = [seed, prose.name if prose else None, words_hash, template, tokenizer_hash(tokenizer)]
        determinants += [*data_files(task, folder).values(), *([] if sizing == FULL else [sizing])]
        path = cache.cache_file(Path(cache_dir), task, length, version(task, chat_template), *determinants)
        samples = cache.read(path)
    missing = [i for i in range(n) if i not in samples]
    if missing:
        make_sizer = Sizer if sizing == FULL else ReleaseSizer
        sizer = make_sizer(task, builders.fitted(builder, tokenizer), tokenizer, length, seed, prose, chat_template)
        samples |= {i: sizer.sample(i) for i in missing}
        if path is not None:
            cache.write(path, samples)
    return [replace(samples[i], context=builders.context_characters(task, samples[i].prompt)) for i in range(n)]


def data_files(task: str, folder: str | None) -> dict[str, str]:
    """Return the files that a task reads beside prose and word list, by name, each with the hash of its content.

    A file that isn't there yet is downloaded. Raises UserError where that fails.
    """
    if task in builders.DOCUMENTS:
        data_file = builders.DOCUMENTS[task]
        return {data_file.names[0]: question_sets.read(files.locate(data_file, folder, task)).name}
    long_list = _long_word_list(task, folder)
    if long_list is None:
        return {}
    if not read_words(str(long_list))[0]:
        raise UserError(f"{long_list}: holds no words; take it out, or get it again from where RULER has it")
    return {long_list.name: files.short_hash(long_list)}


def check_words(path: str, length: int) -> None:
    """Raise UserError where a file of words (data.words) can't fill the lists of samples of `length` tokens: nothing stands in
    for it, whatever the task."""
    words, least = read_words(path)[0] or (), least_words(length)
    if any(not word.strip() for word in words):
        raise UserError(f"data.words={path}: one of its words is blank; take it out")
    if len(words) < least:
        counted = f"{len(words)} different word{'' if len(words) == 1 else 's'}" if words else "no words"
        raise UserError(
            f"data.words={path}: it has {counted}, and lists of length={length} need {least} different ones at least"
        )


def _long_word_list(task: str, folder: str | None) -> Path | None:
    """Find the longer word list of a task that can use one."""
    return files.find(builders.MORE_WORDS, folder) if folder is not None and task in builders.LONG_LISTS else None


def read_words(path: str | None) -> tuple[tuple[str, ...] | None, str | None]:
    """Read the words of a file, and the hash of its content, which names them in the cache."""
    if path is None:
        return None, None
    file = input_file("data.words", path, "give a text file of words, or RULER's english_words.json")
    return _parsed(raw := read_bytes(file), file), hashlib.sha256(raw).hexdigest()[:12]


@lru_cache(maxsize=8)
def _parsed(raw: bytes, file: Path) -> tuple[str, ...]:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 ({error.reason} at byte {error.start}); {WORDS_FORMAT}") from None
    if file.suffix != ".json":
        return tuple(sorted(set(text.split())))
    content = parse_json(text, file, f"; {WORDS_FORMAT}")
    words = content.values() if isinstance(content, dict) else ()
    if not words or not all(isinstance(word, str) for word in words):
        raise UserError(f"{file}: holds no words; {WORDS_FORMAT}")
    return tuple(sorted(set(words)))
